//! The watchdogs: the one that the WFE channel sets up, and the Generic Watchdog device. Each never acts before its
//! time is over, and always acts then.

use abi::wfe as words;
use devices::{AccessSize, Effect, GenericWatchdog};
use watchdog::words::Request;
use watchdog::{Action, Actions, Bounds, Refused, Watchdog};

use crate::input::Input;

/// Registers of a WFE: most often one of the words, or one that differs from it in a bit.
fn registers(input: &mut Input<'_>) -> [u64; 3] {
    let known = [
        words::DETECT,
        words::CONFIGURE,
        words::PAT,
        words::QUERY,
        words::CONFIGURE_OWN,
        words::PAT_OWN,
        words::QUERY_OWN,
    ];
    let choice = input.byte();
    let x0 = match known.get(usize::from(choice & 7)) {
        Some(word) if choice & 0x80 == 0 => *word,
        Some(word) => word ^ 1 << (choice >> 3 & 15) << (input.byte() & 48),
        None => input.double(),
    };
    // Both words and numbers that make sense.
    let x1 = if choice & 0x40 == 0 { input.half().into() } else { input.double() };
    [x0, x1, if choice & 0x20 == 0 { input.byte().into() } else { input.double() }]
}

/// WFE with any registers, on a watchdog that is paused and whose time passes.
pub fn words(data: &[u8]) {
    let mut input = Input(data);
    let shape = input.byte();
    let bounds = Bounds { least: 100, most: 5000, actions: Actions(shape & 31), may_disarm: shape & 0x20 != 0 };
    let mut watchdog = Watchdog::new(bounds);
    let mut now = u64::from(input.half());
    // What is left of its time, and how long that was, while it is armed.
    let mut armed: Option<(u64, u64)> = None;
    let mut paused = false;
    if shape & 0x40 != 0 {
        watchdog.preset(2000, Action::Reset, now);
        armed = Some((2000, 2000));
    }
    while !input.is_empty() {
        match input.byte() % 8 {
            0 => {
                watchdog.pause(now);
                paused = true;
            }
            1 => {
                watchdog.resume(now);
                paused = false;
            }
            2 | 3 => {
                let length = u64::from(input.half()) % 3000;
                now += length;
                if let Some((left, whole)) = &mut armed
                    && !paused
                {
                    let expected = length >= *left;
                    *left = left.saturating_sub(length);
                    let acted = watchdog.expire(now);
                    assert_eq!(acted.is_some(), expected);
                    match acted {
                        None => {}
                        Some(Action::Log | Action::Inject) => *left = *whole,
                        // The VM is paused by that, and watched again when it goes on.
                        Some(Action::Pause) if !bounds.may_disarm => (*left, paused) = (*whole, true),
                        Some(_) => armed = None,
                    }
                } else {
                    assert_eq!(watchdog.expire(now), None);
                }
            }
            _ => {
                let x = registers(&mut input);
                match Request::decode(x[0], x[1], x[2]) {
                    None => assert!(!is_word(x[0])),
                    Some(_) if !is_word(x[0]) => panic!("{:#x} is no word", x[0]),
                    Some(Request::Detect) => {}
                    Some(Request::Configure { timeout, action, .. }) => {
                        // One that stands still has its new time when the VM goes on.
                        match watchdog.configure(timeout, action, now) {
                            Ok(0) => {
                                assert!(timeout == 0 && (armed.is_none() || bounds.may_disarm));
                                armed = None;
                            }
                            Ok(granted) => {
                                assert!(timeout != 0 && (bounds.least..=bounds.most).contains(&granted));
                                let action = Action::from_number(action).expect("an action that was taken");
                                assert!(bounds.actions.contains(action));
                                armed = Some((granted, granted));
                            }
                            Err(refused) => assert!(matches!(refused, Refused::Action | Refused::MustStay)),
                        }
                    }
                    Some(Request::Pat(_)) => {
                        assert_eq!(watchdog.pat(now).ok(), armed.map(|(_, whole)| whole));
                        armed = armed.map(|(_, whole)| (whole, whole));
                    }
                    Some(Request::Query(_)) => assert_eq!(watchdog.query(now).ok(), armed.map(|(left, _)| left)),
                }
            }
        }
        assert_eq!(watchdog.deadline().map(|at| at - now), armed.filter(|_| !paused).map(|(left, _)| left));
    }
}

fn is_word(x0: u64) -> bool {
    x0 >> 32 == u64::from(u32::from_be_bytes(*b"WFE0"))
        && [b"DETC", b"WDOG", b"PATT", b"WQRY", b"ODOG", b"OPAT", b"OQRY"]
            .iter()
            .any(|low| u32::from_be_bytes(**low) == x0 as u32)
}

/// WCS, WOR, WCV and WRR.
const WCS: u64 = 0;
const WOR: u64 = 8;
const WCV: u64 = 16;

/// The device under any accesses. As long as nobody writes its compare value, its signals come when they must.
pub fn device(data: &[u8]) {
    let mut input = Input(data);
    let mut watchdog = GenericWatchdog::new();
    let mut now = u64::from(input.word());
    // When it was refreshed last; unknown after a write to the compare value.
    let mut refreshed = None;
    while !input.is_empty() {
        let status = watchdog.read_control(WCS, AccessSize::Word);
        let offset = watchdog.read_control(WOR, AccessSize::Double);
        assert_eq!(watchdog.line(), status & 2 != 0);
        assert_eq!(watchdog.deadline().is_some(), status & 5 == 1);
        match input.byte() % 8 {
            0 | 1 => {
                now = now.saturating_add(u64::from(input.word()) >> (input.byte() & 31));
                let second = watchdog.advance(now);
                assert!(!second || status & 4 == 0, "it rises once");
                let after = watchdog.read_control(WCS, AccessSize::Word);
                assert_eq!(second, after & 4 > status & 4);
                assert!(watchdog.deadline().is_none_or(|at| at > now || at == u64::MAX));
                if let Some(at) = refreshed
                    && status & 1 != 0
                {
                    assert_eq!(after & 2 != 0, now - at > offset, "the first signal");
                    assert_eq!(after & 4 != 0, now - at > offset.saturating_mul(2).saturating_add(1), "the second");
                }
            }
            2 => {
                let before = watchdog.deadline();
                let length = u64::from(input.half());
                watchdog.pause(now);
                now = now.saturating_add(length);
                assert!(watchdog.deadline().is_none() && !watchdog.advance(now), "it acts during a pause");
                watchdog.resume(now);
                assert_eq!(watchdog.deadline(), before.map(|at| at.saturating_add(length)));
                refreshed = None;
            }
            3 => {
                watchdog.reset();
                assert_eq!(watchdog.read_control(WCS, AccessSize::Word) & 3, 0);
                refreshed = None;
            }
            choice => {
                let register = [WCS, WOR, WOR + 4, WCV, WCV + 4, 0xfcc, 0, 4][usize::from(input.byte() & 7)];
                let size = AccessSize::from_sas(input.byte().into());
                let register = if choice == 7 { u64::from(input.half()) & 0xfff } else { register };
                // Times of any length, most often such as pass here.
                let value = input.double() >> (input.byte() & 63);
                assert_eq!(watchdog.read_control(register, size) & !size.mask(), 0);
                assert_eq!(watchdog.read_refresh(register, size) & !size.mask(), 0);
                let compare = watchdog.read_control(WCV, AccessSize::Double);
                let effect = match choice {
                    4 => watchdog.write_refresh(register, size, value, now),
                    _ => watchdog.write_control(register, size, value, now),
                };
                if effect == Effect::None {
                    assert_eq!(compare, watchdog.read_control(WCV, AccessSize::Double));
                } else if choice != 4 && (WCV..WCV + 8).contains(&register) {
                    refreshed = None;
                } else {
                    assert_eq!(watchdog.read_control(WCS, AccessSize::Word) & 6, 0, "refreshed");
                    refreshed = Some(now);
                }
            }
        }
    }
}
