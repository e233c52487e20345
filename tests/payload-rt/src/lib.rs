//! The runtime of the bare-metal payloads that prove Undercroft's behaviour from inside a guest.
//!
//! A payload is a raw arm64 `Image` that runs at EL1 with nothing below it but a machine with the map of QEMU's `virt`: GICv3, PL011
//! at 0x0900_0000, RAM at 0x4000_0000, PSCI by HVC. The same binary therefore runs under the hypervisor and on the bare emulated
//! machine; what it prints on the latter is the reference.
//!
//! The order of things: [`entry!`] makes Rust possible (stack, relocations, identity map with caches on), reads the device tree
//! ([`fdt`], [`machine`]) and calls the payload's `main`. A payload is either a list of [`test::Test`]s handed to [`test::run`], or
//! does as it likes and ends with [`psci::system_off`].
//!
//! UNSAFETY: this crate is all registers, vectors and addresses that are no Rust objects, so it may use `unsafe`; the payloads above it
//! need none. Three rules keep its safe functions safe: addresses handed in from outside never lie in the payload's own image
//! ([`memory::outside_image`]), instructions handed in from outside are of a class that cannot change Rust's own state
//! ([`instruction::execute`]), and everything that CPUs share is atomic or behind a lock.
#![no_std]
#![expect(unsafe_code, reason = "registers, exception vectors and raw addresses are this crate's subject")]

pub mod away;
pub mod bench;
pub mod cpu;
pub mod debug;
pub mod entry;
pub mod fault;
pub mod fdt;
pub mod foreign;
pub mod general;
pub mod gic;
pub mod instruction;
pub mod interrupt;
pub mod machine;
pub mod memory;
pub mod mmu;
pub mod psci;
pub mod random;
pub mod simd;
pub mod sysreg;
pub mod test;
pub mod timer;
pub mod uart;
pub mod user;
mod vectors;
pub mod virtio;
pub mod vmclock;

/// The most CPUs that a payload uses.
pub const MAX_CPUS: usize = 8;

/// Names the function that the runtime calls on the boot CPU, interrupts masked. When it returns, the machine is switched off.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[expect(unsafe_code, reason = "the one symbol through which the runtime finds the payload")]
        // SAFETY: the name is the runtime's own and each payload defines it once, with the type that the runtime declares.
        #[unsafe(no_mangle)]
        extern "Rust" fn payload_main() {
            $main()
        }
    };
}
