//! The hardware, without policy: registers, entry, vectors, the world switch, EL2's own address space, threads, the
//! host's interrupt controller and UART.
//!
//! UNSAFETY: all assembly and all unsafe code of the hypervisor are in this crate. What it offers is safe to call: a
//! caller can make a guest misbehave or a device silent, but cannot make EL2 read, write or execute memory that does
//! not belong to it. Where a function takes a physical address, its documentation says who must own it, and the frame
//! allocator (`core/frames`) knows the owner. `docs/unsafe.md` has an entry for each kind of block.
#![no_std]
#![expect(unsafe_code, reason = "the one crate of the hypervisor that touches the hardware")]

pub mod boot;
mod bytes;
pub mod cache;
pub mod clock;
pub mod crash;
pub mod enclave;
pub mod firmware;
pub mod gic;
pub mod heap;
pub mod ids;
pub mod memory;
pub mod mmio;
pub mod mmu;
pub mod nopreempt;
pub mod pci;
pub mod pen;
pub mod percpu;
pub mod probe;
pub mod rndr;
pub mod selftest;
pub mod speculation;
pub mod stack;
pub mod stage1;
pub mod state;
pub mod sync;
pub mod sysreg;
pub mod thread;
pub mod tlb;
pub mod uart;
pub mod vcpu;
mod vectors;
pub mod virtio;
pub mod visitor;

/// Makes `$main` (a `fn(device_tree: Pa) -> !`) what the boot path calls, `$exit` (a `fn(&mut VcpuContext, kind: u64) ->
/// u64`) the exit hook, which the vectors call, and `$crate::crash::panic` the panic handler.
#[macro_export]
macro_rules! entry {
    ($main:path, $exit:path) => {
        #[expect(unsafe_code, reason = "the boot path and the vectors find these by their names")]
        mod entry_point {
            #[unsafe(no_mangle)]
            extern "C" fn undercroft_exit(context: &mut $crate::vcpu::VcpuContext, kind: u64) -> u64 {
                let exit: fn(&mut $crate::vcpu::VcpuContext, u64) -> u64 = $exit;
                exit(context, kind)
            }

            #[unsafe(no_mangle)]
            extern "C" fn undercroft_main(device_tree: u64) -> ! {
                let main: fn(::units::Pa) -> ! = $main;
                main(::units::Pa(device_tree))
            }
        }

        #[panic_handler]
        fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
            $crate::crash::panic(info)
        }
    };
}
