//! Device registers, one load or store each. Inline assembly keeps each access a single plain register access, whose
//! trap syndrome is complete should we ourselves run under another hypervisor.
//!
//! Only this crate's drivers use these, on register blocks that `mmu` maps as Device (or with the MMU off).

macro_rules! access {
    ($read:ident, $write:ident, $ty:ty, $load:literal, $store:literal) => {
        #[inline(always)]
        pub(crate) fn $read(address: u64) -> $ty {
            let value: $ty;
            // SAFETY: drivers pass addresses inside the register blocks that the platform describes.
            unsafe { core::arch::asm!($load, out(reg) value, in(reg) address, options(nostack, preserves_flags)) };
            value
        }

        #[inline(always)]
        pub(crate) fn $write(address: u64, value: $ty) {
            // SAFETY: as above; no driver writes an address for DMA into a register.
            unsafe { core::arch::asm!($store, in(reg) value, in(reg) address, options(nostack, preserves_flags)) };
        }
    };
}

access!(read32, write32, u32, "ldr {0:w}, [{1}]", "str {0:w}, [{1}]");
access!(read64, write64, u64, "ldr {0}, [{1}]", "str {0}, [{1}]");
