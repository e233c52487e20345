//! A vCPU's thread: waits until there is something to do, runs the guest, and hands each exit that is not answered on the short
//! path to [`dispatch`].

use ::vm::Task;
use ::vm::exits::Cause;
use hw::sync::{unmask_irqs, with_irqs};
use hw::sysreg;
use hw::vcpu::{VcpuContext, exit_kind};
use units::VcpuId;

use crate::exit::checks::{Checks, Place};
use crate::exit::dispatch;
use crate::sched;
use crate::vcpu::{self, Heed, Leave, Vcpu};
use crate::vm::Vm;
use crate::vm::handle::VcpuHandle;

/// Makes vCPU `id` of `vm`, which is run here.
///
/// # Errors
/// When there is no memory or no number for it.
pub(crate) fn make_vcpu<C: Checks>(vm: &'static Vm, id: VcpuId) -> Result<&'static VcpuHandle, frames::FramesError> {
    Vcpu::create(vm, id, live::<C>)
}

/// A vCPU thread's life: wait until there is something to do, do it, wait again. IRQs are let in but where the guest is
/// entered.
fn live<C: Checks>(index: usize) -> ! {
    unmask_irqs();
    let Some(vcpu) = vcpu::by_index(index) else { unreachable!("the thread was made for a vCPU") };
    let context = vcpu.make_context();
    loop {
        match vcpu.vm.next_task(vcpu) {
            Task::Boot => vcpu.vm.boot(),
            Task::End => vcpu.vm.end(),
            Task::Run(start) => {
                vcpu.vm.doors.watchdogs.vcpu_started(vcpu.vm, vcpu.id);
                vcpu.reset(start, context);
                C::vcpu_is_reset(vcpu);
                run_until_off::<C>(vcpu, context);
            }
            Task::GoOn => {
                vcpu.take_registers(context);
                run_until_off::<C>(vcpu, context);
            }
        }
    }
}

/// Runs its guest, which may suspend it and start it afresh, until it is off.
fn run_until_off<C: Checks>(vcpu: &'static Vcpu, context: &mut VcpuContext) {
    let mut leave = vcpu.on(|| run::<C>(vcpu, context));
    while let Leave::Resumed(start) = leave {
        vcpu.reset(start, context);
        C::vcpu_is_reset(vcpu);
        leave = vcpu.on(|| run::<C>(vcpu, context));
    }
    vcpu.vm.left(vcpu.id);
}

/// IRQs are masked, so that nothing comes between the last look at what is asked of the vCPU and its guest; what an exit
/// leads to happens with IRQs let in. The thread may be preempted there, and move: whenever it runs, its vCPU is loaded.
fn run<C: Checks>(vcpu: &'static Vcpu, context: &mut VcpuContext) -> Leave {
    loop {
        match vcpu.heed(context) {
            Heed::Enter => {}
            Heed::LookAgain => continue,
            Heed::Leave => return Leave::Stopped,
        }
        if sched::wants_reschedule() {
            C::before_preemption(Place::BetweenExits);
            sched::preempt();
            continue;
        }
        match hw::vcpu::enter(context) {
            exit_kind::SYNCHRONOUS => {
                // The next exit of this CPU overwrites these registers.
                let cause = Cause { esr: context.syndrome, far: sysreg::far_el2(), hpfar: sysreg::hpfar_el2() };
                C::before_handler();
                if let Some(leave) = with_irqs(|| dispatch::handle(vcpu, context, cause)) {
                    return leave;
                }
            }
            exit_kind::SERROR => vcpu.inject_serror(),
            // An interrupt that ended it is taken as soon as IRQs are let in.
            exit_kind::AARCH32 => with_irqs(|| dispatch::refuse_aarch32(vcpu, context)),
            _ => {}
        }
    }
}
