//! What the site file makes of a VM's watchdogs, and what their actions lead to. Their time is tested with the VM's
//! life.

use super::{AtExpiry, Bite, Caller, Consequence, LEAST, MOST, Watchdogs, Which};
use crate::world::{Event, World};
use crate::{Life, Stop};
use abi::bundle::Doors as Policy;
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;
use units::VcpuId;
use vmware::ExceptionLevel;
use watchdog::{Action, Actions, Refused, Scope};

const VM: Caller = Caller { level: ExceptionLevel::Kernel, vcpu: VcpuId(0), scope: Scope::Vm };

fn own(id: u8) -> Caller {
    Caller { level: ExceptionLevel::Kernel, vcpu: VcpuId(id), scope: Scope::Own }
}

/// The life of a VM that runs.
fn life() -> Life<&'static str> {
    World::running().life
}

/// The hypervisor has a thread for watchdogs only if some VM may have one.
#[test]
fn whoever_may_set_one_up_or_has_one_by_the_site_file_may_use_it() {
    let none = Policy::default();
    assert!(!Watchdogs::may_be_used(&none));
    let policies = [
        Policy { vmware: true, ..none },
        Policy { wfe: true, ..none },
        Policy { watchdog_milliseconds: 100, ..none },
        Policy { vcpu_watchdog_milliseconds: 100, ..none },
        Policy { generic_watchdog: true, ..none },
    ];
    assert!(policies.iter().all(Watchdogs::may_be_used));
}

#[test]
fn each_action_leads_to_what_it_says() {
    let text = "its watchdog was not patted in time";
    let of = |which, patient| Action::LIST.map(|action| Bite { which, action, patient: VcpuId(patient) });
    let consequences = of(Which::Vm, 0).map(Bite::consequence::<&str>);
    let expected = [
        Consequence::Nothing,
        Consequence::SError(VcpuId(0)),
        Consequence::Stop(Stop::Reset),
        Consequence::Pause,
        Consequence::Stop(Stop::Crashed(text)),
    ];
    assert_eq!(consequences, expected);
    let lines = of(Which::Own(VcpuId(2)), 2).map(|bite| bite.to_string());
    let paused = "; the VM is paused (`croft dump` shows where, `croft resume` goes on)";
    let ends = ["", "; vCPU 2 gets an SError", "; the VM starts afresh", paused, "; the VM stops"];
    assert_eq!(lines, ends.map(|end| format!("watchdog of vCPU 2: not patted in time{end}")));
    let inject = |which| Bite { which, action: Action::Inject, patient: VcpuId(1) };
    let names = [Which::Vm, Which::Device].map(|which| inject(which).to_string());
    let end = "not patted in time; vCPU 1 gets an SError";
    assert_eq!(names, [format!("watchdog: {end}"), format!("Generic Watchdog: {end}")]);
}

/// A vCPU's own watchdog is for that vCPU; one that is for all has the first that is on to tell. Nobody is told who is off.
#[test]
fn an_serror_goes_to_whose_watchdog_it_is_and_to_nobody_who_is_off() {
    let policy = Policy { watchdog_action: Action::Inject.number(), ..Policy::default() };
    let patients = |world: &World| {
        [Which::Own(VcpuId(1)), Which::Vm, Which::Device].map(|which| {
            let mut watchdogs = Watchdogs::new(&policy);
            let bite = match which {
                Which::Device => Some(Bite::of_device(&policy, &world.life)),
                Which::Vm => watchdogs.configure(VM, 100, 1, 0).ok().and(watchdogs.look(&world.life, which, 200)),
                Which::Own(id) => {
                    watchdogs.configure(own(id.0), 100, 1, 0).ok().and(watchdogs.look(&world.life, which, 200))
                }
            };
            let bite = bite.unwrap();
            let Consequence::SError(VcpuId(id)) = bite.consequence::<&str>() else { panic!("{bite:?}") };
            assert!(bite.to_string().ends_with(&format!("; vCPU {id} gets an SError")), "{bite}");
            id
        })
    };
    let mut world = World::running();
    assert_eq!(patients(&world), [0, 0, 0], "vCPU 0 alone");
    for id in [1, 2] {
        world.happen(Event::CpuOn(0, id as u64));
        assert_eq!(patients(&world)[1..], [0, 0], "another is about to be on");
        world.steps(id, 2);
        assert!(world.in_guest(id));
    }
    assert_eq!(patients(&world), [1, 0, 0], "all");
    world.happen(Event::CpuOff(0));
    assert_eq!(patients(&world), [1, 1, 1], "vCPUs 1 and 2");
    world.happen(Event::CpuOff(1));
    assert_eq!(patients(&world), [2, 2, 2], "vCPU 2 alone");
    // It switches vCPU 1 on, and itself off before that has begun.
    world.happen(Event::CpuOn(2, 1));
    world.happen(Event::CpuOff(2));
    assert_eq!(patients(&world), [1, 1, 1], "vCPU 1 is about to be on");
}

#[test]
fn the_generic_watchdog_does_what_the_site_file_says_and_begins_anew_where_it_pauses() {
    for action in Action::LIST {
        let policy = Policy { watchdog_action: action.number(), ..Policy::default() };
        let bite = Bite::of_device(&policy, &life());
        assert_eq!(bite, Bite { which: Which::Device, action, patient: VcpuId(0) });
        let expected = if action == Action::Pause { AtExpiry::BeginAnew } else { AtExpiry::Stay };
        assert_eq!(bite.at_expiry(), expected, "{action:?}");
    }
}

#[test]
fn a_process_may_only_look_unless_the_site_file_lets_it() {
    for users_may in [false, true] {
        let mut watchdogs = Watchdogs::new(&Policy { watchdog_user: users_may, ..Policy::default() });
        assert_eq!(watchdogs.configure(VM, 100, 0, 0), Ok(100));
        let user = Caller { level: ExceptionLevel::User, ..VM };
        let answers = [watchdogs.configure(user, 50, 0, 0), watchdogs.pat(user, 0)];
        assert_eq!(answers, if users_may { [Ok(50); 2] } else { [Err(Refused::Level); 2] });
        assert_eq!(watchdogs.query(user, 10), Ok(if users_may { 40 } else { 90 }));
    }
}

#[test]
fn what_is_the_guests_own_may_be_anything_and_what_the_site_file_arms_only_stricter() {
    let armed = Policy { watchdog_milliseconds: 5000, watchdog_action: Action::Reset.number(), ..Policy::default() };
    let mut watchdogs = Watchdogs::new(&armed);
    watchdogs.vcpu_started(VcpuId(0), 0);
    assert_eq!(watchdogs.query(VM, 0), Ok(5000));
    assert_eq!(watchdogs.configure(VM, 0, 0, 0), Err(Refused::MustStay));
    assert_eq!(watchdogs.configure(VM, 6000, Action::Reset.number().into(), 0), Ok(5000));
    assert_eq!(watchdogs.configure(VM, 400, Action::Reset.number().into(), 0), Ok(400));
    assert_eq!(watchdogs.configure(VM, 400, Action::Log.number().into(), 0), Err(Refused::Action));
    // Each vCPU's own is not armed here, and the guest's.
    assert_eq!(watchdogs.configure(own(0), MOST + 1, 0, 0), Ok(MOST));
    assert_eq!(watchdogs.configure(own(0), 1, 4, 0), Ok(LEAST));
    assert_eq!(watchdogs.configure(own(0), 0, 0, 0), Ok(0));

    let choices = Actions::only(Action::Log).0 | Actions::only(Action::Pause).0;
    let mut watchdogs = Watchdogs::new(&Policy { watchdog_choices: choices, ..armed });
    let answers: Vec<_> = (0..5).map(|action| watchdogs.configure(VM, 400, action, 0).is_ok()).collect();
    assert_eq!(answers, [true, false, false, true, false]);
}

#[test]
fn the_site_file_arms_the_vm_once_in_a_life_and_each_vcpu_when_it_begins() {
    let policy = Policy { watchdog_milliseconds: 1000, vcpu_watchdog_milliseconds: 700, ..Policy::default() };
    let mut watchdogs = Watchdogs::new(&policy);
    assert_eq!(watchdogs.next_look(), None, "before anybody begins");
    let left = |watchdogs: &mut Watchdogs, now| [VM, own(0), own(1)].map(|caller| watchdogs.query(caller, now).ok());
    watchdogs.vcpu_started(VcpuId(0), 100);
    assert_eq!(left(&mut watchdogs, 100), [Some(1000), Some(700), None]);
    watchdogs.vcpu_started(VcpuId(1), 300);
    assert_eq!(left(&mut watchdogs, 300), [Some(800), Some(500), Some(700)]);
    watchdogs.stop();
    assert_eq!(left(&mut watchdogs, 400), [None; 3]);
    watchdogs.vcpu_started(VcpuId(1), 900);
    assert_eq!(left(&mut watchdogs, 900), [Some(1000), None, Some(700)]);
}

/// The clock may have been about to show the next millisecond when the watchdog was armed.
#[test]
fn none_bites_before_its_time_is_over_nor_after_it_was_next_to_be_looked_at() {
    let life = life();
    let mut watchdogs = Watchdogs::new(&Policy::default());
    assert_eq!(watchdogs.configure(own(1), 100, Action::Log.number().into(), 40), Ok(100));
    let which = Which::Own(VcpuId(1));
    assert_eq!(watchdogs.next_look(), Some(141));
    assert_eq!(watchdogs.look(&life, which, 140), None);
    assert_eq!(watchdogs.look(&life, Which::Vm, 141), None);
    assert_eq!(watchdogs.look(&life, which, 141), Some(Bite { which, action: Action::Log, patient: VcpuId(0) }));
}

/// Those that the site file arms, the VM's and a vCPU's own, stand still in a pause and go on with what they had left; after a pause
/// that a bite made, all their time is before them.
#[test]
fn each_stands_still_in_a_pause_and_goes_on_with_its_vm() {
    let pauses = Policy { watchdog_action: Action::Pause.number(), ..Policy::default() };
    let of_vm = Policy { watchdog_milliseconds: 400, ..pauses };
    let of_vcpu = Policy { vcpu_watchdog_milliseconds: 400, ..pauses };
    for (policy, which) in [(of_vm, Which::Vm), (of_vcpu, Which::Own(VcpuId(0)))] {
        let mut watchdogs = Watchdogs::new(&policy);
        watchdogs.vcpu_started(VcpuId(0), 0);
        watchdogs.pause(100);
        assert_eq!(watchdogs.next_look(), None, "{which}");
        watchdogs.resume(1000);
        assert_eq!(watchdogs.next_look(), Some(1301), "{which}: 300 ms are left");
        let bite = Bite { which, action: Action::Pause, patient: VcpuId(0) };
        assert_eq!(watchdogs.look(&life(), which, 1301), Some(bite));
        watchdogs.pause(1301);
        watchdogs.resume(5000);
        assert_eq!(watchdogs.next_look(), Some(5401), "{which}: it has all its time again");
    }
}

/// Its deadline may be over when the VM is paused, or stops: whoever looks then finds nothing to do.
#[test]
fn a_vm_that_does_not_run_is_not_bitten() {
    let policy = Policy { watchdog_milliseconds: 300, watchdog_action: Action::Reset.number(), ..Policy::default() };
    for event in [Event::Pause, Event::Stop(Stop::Operator)] {
        let mut world = World::watched(policy).run();
        world.happen(Event::Wait(5000));
        world.happen(event.clone());
        world.happen(Event::Look(Which::Vm));
        assert_eq!(world.bites, [], "{event:?}");
    }
}

/// Of two whose time is over at once, the second finds a VM that does not run, and is not asked again in the next life.
#[test]
fn a_bite_does_not_outlast_the_life_that_it_was_for() {
    let policy = Policy { watchdog_milliseconds: 300, watchdog_action: Action::Reset.number(), ..Policy::default() };
    let mut world = World::watched(Policy { vcpu_watchdog_milliseconds: 300, ..policy }).run();
    world.happen(Event::Wait(301));
    world.happen(Event::Look(Which::Vm));
    world.happen(Event::Look(Which::Own(VcpuId(0))));
    assert_eq!(world.bites.len(), 1);
    // Out of the guest, taken apart, loaded and in again, without a millisecond's delay.
    world.steps(0, 7);
    assert!(world.in_guest(0));
    assert_eq!((world.life.boots(), world.life.is_running()), (2, true));
    world.happen(Event::Look(Which::Own(VcpuId(0))));
    assert_eq!(world.bites.len(), 1);
}

#[test]
fn those_that_are_armed_or_have_acted_are_written() {
    let mut watchdogs = Watchdogs::new(&Policy::default());
    let mut text = String::new();
    watchdogs.write(0, &mut text).unwrap();
    assert_eq!(text, "");
    watchdogs.configure(VM, 500, Action::Stop.number().into(), 0).unwrap();
    watchdogs.configure(own(3), 100, Action::Pause.number().into(), 0).unwrap();
    assert!(watchdogs.look(&life(), Which::Own(VcpuId(3)), 150).is_some());
    watchdogs.pause(200);
    watchdogs.write(900, &mut text).unwrap();
    let expected =
        "  watchdog: 300 of 500 ms left to stop, stands still; acted 0 times\n  watchdog of vCPU 3: acted 1 time\n";
    assert_eq!(text, expected);
}
