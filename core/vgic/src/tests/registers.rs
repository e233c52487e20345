//! What each register reads and writes.

use super::{ONE, ZERO, private, read, vgic, write};
use crate::{AccessSize, Direction, Vgic};
use units::{VcpuId, VcpuSet};

#[test]
fn the_distributor_describes_itself() {
    let mut vgic = vgic(4, 4);
    assert_eq!(read(&vgic, 0x4), 3 | 9 << 19);
    assert_eq!(read(&vgic, 0x8) & 0xFFF, 0);
    assert_eq!(
        identification_of(|offset| read(&vgic, offset)),
        [0x44, 0, 0, 0, 0x92, 0xB4, 0x3B, 0, 0x0D, 0xF0, 5, 0xB1]
    );
    assert_eq!(read(&vgic, 0x0), 0x50);
    write(&mut vgic, 0x0, 0xFFFF_FFFF);
    assert_eq!(read(&vgic, 0x0), 0x53);
    write(&mut vgic, 0x0, 0);
    assert_eq!(read(&vgic, 0x0), 0x50, "ARE and DS cannot be cleared");
}

/// As the tables of GIC IHI 0069H 12.4 have them. All that is tested here uses the same names on both sides.
#[test]
fn fields_are_where_the_hardware_has_them() {
    use crate::{list_register as lr, virtual_control as hcr, virtual_interface as vmcr};
    assert_eq!([lr::ACTIVE, lr::PENDING, lr::HARDWARE, lr::GROUP1], [1 << 63, 1 << 62, 1 << 61, 1 << 60]);
    assert_eq!([lr::STATE, lr::PHYSICAL, lr::EOI], [0b11 << 62, 0x1FFF << 32, 1 << 41]);
    assert_eq!([hcr::EN, hcr::LRENPIE, hcr::NPIE, hcr::TDIR, hcr::EOI_COUNT], [1, 4, 8, 0x4000, 0xF800_0000]);
    assert_eq!((hcr::GROUP_ENABLED, hcr::GROUP_DISABLED), ([0x10, 0x40], [0x20, 0x80]));
    assert_eq!([vmcr::GROUPS, vmcr::COMMON_BINARY_POINT, vmcr::SPLIT_END], [3, 0x10, 0x200]);
}

/// PIDR4 to 7, PIDR0 to 3, CIDR0 to 3, as QEMU's `virt` shows them.
fn identification_of(read: impl Fn(u64) -> u64) -> [u64; 12] {
    core::array::from_fn(|index| read(0xFFD0 + 4 * index as u64))
}

#[test]
fn redistributors_describe_their_vcpu() {
    let vgic = vgic(3, 4);
    let double = |vcpu| vgic.redistributor_read(VcpuId(vcpu), 0x8, AccessSize::Double);
    assert_eq!(double(0), 1 << 5);
    assert_eq!(double(1), 1 << 32 | 1 << 8 | 1 << 5);
    assert_eq!(double(2), 2 << 32 | 2 << 8 | 1 << 5 | 1 << 4);
    assert_eq!(vgic.redistributor_read(VcpuId(2), 0xC, AccessSize::Word), 2);
    let identification = identification_of(|offset| vgic.redistributor_read(ONE, offset, AccessSize::Word));
    assert_eq!(identification, [0x44, 0, 0, 0, 0x93, 0xB4, 0x3B, 0, 0x0D, 0xF0, 5, 0xB1]);
    assert_eq!(vgic.redistributor_read(ZERO, 0x0, AccessSize::Word), 0);
}

#[test]
fn a_redistributor_starts_awake_and_can_be_put_to_sleep() {
    let mut vgic = vgic(2, 4);
    let waker = |vgic: &Vgic, vcpu| vgic.redistributor_read(vcpu, 0x14, AccessSize::Word);
    assert_eq!(waker(&vgic, ONE), 0);
    vgic.redistributor_write(ONE, 0x14, AccessSize::Word, 0xFFFF_FFFF);
    assert_eq!(waker(&vgic, ONE), 0b110);
    assert_eq!(waker(&vgic, ZERO), 0);
    vgic.redistributor_write(ONE, 0x14, AccessSize::Word, 0);
    assert_eq!(waker(&vgic, ONE), 0);
}

#[test]
fn set_and_clear_registers_are_pairs() {
    for (set, clear) in [(0x100, 0x180), (0x200, 0x280), (0x300, 0x380)] {
        let mut vgic = vgic(1, 4);
        write(&mut vgic, set + 4, 0xF0);
        write(&mut vgic, set + 4, 0x1F);
        assert_eq!((read(&vgic, set + 4), read(&vgic, clear + 4)), (0xFF, 0xFF));
        write(&mut vgic, clear + 4, 0x3C);
        assert_eq!((read(&vgic, set + 4), read(&vgic, clear + 4)), (0xC3, 0xC3));
        assert_eq!(read(&vgic, set + 8), 0);
        let word = AccessSize::Word;
        vgic.redistributor_write(ZERO, private(set), word, 0x8000_0001);
        assert_eq!(vgic.redistributor_read(ZERO, private(clear), word), 0x8000_0001);
    }
}

#[test]
fn private_registers_of_the_distributor_read_as_zero() {
    let mut vgic = vgic(1, 4);
    for offset in [0x80, 0x100, 0x200, 0x300, 0x400, 0x41C, 0xC00, 0xC04] {
        assert_eq!(write(&mut vgic, offset, 0xFFFF_FFFF), VcpuSet::EMPTY);
        assert_eq!(read(&vgic, offset), 0);
        assert_eq!(vgic.redistributor_read(ZERO, private(0x100), AccessSize::Word), 0);
    }
}

#[test]
fn legacy_and_optional_registers_are_raz_wi() {
    let mut vgic = vgic(1, 4);
    for offset in [0x10, 0x40, 0x840, 0xD04, 0xE08, 0xF00, 0xF10, 0xF20, 0xF80, 0x1104, 0x6000, 0x6400, 0xFFCC] {
        write(&mut vgic, offset, 0xFFFF_FFFF);
        assert_eq!(read(&vgic, offset), 0, "offset {offset:#x}");
    }
    assert_eq!(read(&vgic, 0x1_0000_0000), 0);
    assert_eq!(vgic.redistributor_read(ZERO, 0x3_0000, AccessSize::Word), 0);
    assert_eq!(vgic.redistributor_read(VcpuId(7), 0x8, AccessSize::Double), 0);
    assert_eq!(vgic.redistributor_write(VcpuId(200), private(0x100), AccessSize::Word, 1), VcpuSet::EMPTY);
}

#[test]
fn priorities_keep_their_implemented_bits_and_take_bytes() {
    let mut vgic = vgic(1, 4);
    write(&mut vgic, 0x424, 0xFFA7_3F12);
    assert_eq!(read(&vgic, 0x424), 0xF8A0_3810);
    assert_eq!(vgic.distributor_read(0x426, AccessSize::Byte), 0xA0);
    vgic.distributor_write(0x426, AccessSize::Byte, 0x1234);
    assert_eq!(read(&vgic, 0x424), 0xF830_3810);
    assert_eq!(vgic.distributor_read(0x424, AccessSize::Half), 0);
    assert_eq!(vgic.distributor_read(0x425, AccessSize::Word), 0);
}

#[test]
fn sgis_are_edges_for_ever() {
    let mut vgic = vgic(1, 4);
    let word = AccessSize::Word;
    vgic.redistributor_write(ZERO, private(0xC00), word, 0);
    assert_eq!(vgic.redistributor_read(ZERO, private(0xC00), word), 0xAAAA_AAAA);
    vgic.redistributor_write(ZERO, private(0xC04), word, 0xFFFF_0000);
    assert_eq!(vgic.redistributor_read(ZERO, private(0xC04), word), 0xAAAA_0000);
    vgic.redistributor_write(ZERO, private(0xC00), word, 0xFFFF_FFFF);
    assert_eq!(vgic.redistributor_read(ZERO, private(0xC00), word), 0xAAAA_AAAA);
    write(&mut vgic, 0xC0C, 0x8000_0002);
    assert_eq!((read(&vgic, 0xC08), read(&vgic, 0xC0C)), (0, 0x8000_0002));
    write(&mut vgic, 0xC0C, 0);
    assert_eq!(read(&vgic, 0xC0C), 0, "the trigger of an SPI can be taken back");
}

/// Nobody is made to look again for a write that names nothing, or says what is so already; neither while an interrupt
/// waits nor while it is in a list register.
#[test]
fn a_write_that_changes_nothing_concerns_nobody() {
    let (mut vgic, mut lrs) = (super::ready(1, 4), super::list_registers());
    vgic.set_spi_level(super::SPI, crate::Line::High);
    for _ in 0..2 {
        let unchanged = [(0x084, 0xFFFF_FFFF), (0x104, 0xFFFF_FFFF), (0xC08, 0), (0x420, 0xA0A0_A0A0)];
        let nothing = [0x184, 0x204, 0x284, 0x304, 0x384].map(|register| (register, 0));
        for (register, value) in unchanged.into_iter().chain(nothing) {
            assert_eq!(write(&mut vgic, register, value), VcpuSet::EMPTY, "{register:#x}");
        }
        super::settle(&mut vgic, ZERO, &mut lrs);
        assert_eq!(super::shown(&lrs), [(32, super::PENDING)]);
    }
}

#[test]
fn what_is_active_stays_so_when_another_is_deactivated() {
    let (mut vgic, mut lrs) = (super::ready(1, 4), super::list_registers());
    vgic.set_spi_level(super::SPI, crate::Line::High);
    super::settle(&mut vgic, ZERO, &mut lrs);
    super::acknowledge(&mut lrs, 0);
    super::settle(&mut vgic, ZERO, &mut lrs);
    write(&mut vgic, 0x384, 1 << 5);
    assert_eq!(read(&vgic, 0x304), 1);
}

#[test]
fn routes_take_words_and_doublewords() {
    let mut vgic = vgic(2, 4);
    vgic.distributor_write(0x6108, AccessSize::Double, u64::MAX);
    assert_eq!(vgic.distributor_read(0x6108, AccessSize::Double), 0xFF_80FF_FFFF);
    assert_eq!(read(&vgic, 0x610C), 0xFF);
    write(&mut vgic, 0x610C, 0);
    assert_eq!(vgic.distributor_read(0x6108, AccessSize::Double), 0x80FF_FFFF);
    write(&mut vgic, 0x610C, 0x12);
    assert_eq!(vgic.distributor_read(0x6108, AccessSize::Double), 0x12_80FF_FFFF);
    write(&mut vgic, 0x610C, 0);
    write(&mut vgic, 0x6108, 1);
    assert_eq!((read(&vgic, 0x6108), read(&vgic, 0x610C)), (1, 0));
    assert_eq!(vgic.distributor_read(0x63F8, AccessSize::Double), 0);
}

#[test]
fn words_only_where_words_belong() {
    let mut vgic = vgic(1, 4);
    write(&mut vgic, 0x104, 0xFFFF_FFFF);
    for (offset, size) in
        [(0x104, AccessSize::Byte), (0x104, AccessSize::Half), (0x100, AccessSize::Double), (0x106, AccessSize::Word)]
    {
        assert_eq!(vgic.distributor_read(offset, size), 0);
        vgic.distributor_write(offset + 0x80, size, u64::MAX);
    }
    assert_eq!(read(&vgic, 0x104), 0xFFFF_FFFF);
}

#[test]
fn only_state_depends_on_list_registers() {
    let vgic = vgic(2, 4);
    let needs = |offset, direction| vgic.redistributor_needs(ONE, private(offset), direction);
    for offset in [0x80, 0x100, 0x180, 0x400, 0xC00] {
        assert_eq!(needs(offset, Direction::Read), VcpuSet::EMPTY);
        assert_eq!(needs(offset, Direction::Write), VcpuSet::EMPTY);
    }
    assert_eq!(needs(0x200, Direction::Read), VcpuSet::only(ONE));
    assert_eq!(needs(0x280, Direction::Write), VcpuSet::EMPTY);
    assert_eq!(needs(0x380, Direction::Write), VcpuSet::only(ONE));
    assert_eq!(vgic.distributor_needs(0x204, Direction::Read), VcpuSet::EMPTY, "nothing is loaded");
}

/// Whose list registers an access of the Distributor depends on: those that hold one of the register's 32 SPIs.
#[test]
fn the_distributor_depends_on_whoever_holds_its_spis() {
    let mut vgic = super::ready(3, 4);
    let mut lrs = [super::list_registers(), super::list_registers(), super::list_registers()];
    for (spi, vcpu) in [(40, 1), (64, 2), (95, 0)] {
        vgic.distributor_write(0x6000 + 8 * u64::from(spi), AccessSize::Double, vcpu);
        vgic.set_spi_level(units::IntId(spi), crate::Line::High);
    }
    vgic.send_sgi(ZERO, super::sgi(5, 0b10), super::GROUP1);
    for (vcpu, lrs) in (0..).zip(&mut lrs) {
        super::settle(&mut vgic, VcpuId(vcpu), lrs);
    }
    for (register, write_too) in [(0x200, false), (0x280, false), (0x300, true), (0x380, true)] {
        for (word, holders) in [(0, 0), (1, 0b010), (2, 0b101), (3, 0)] {
            let offset = register + 4 * word;
            assert_eq!(vgic.distributor_needs(offset, Direction::Read), VcpuSet(holders), "{offset:#x}");
            let expected = if write_too { VcpuSet(holders) } else { VcpuSet::EMPTY };
            assert_eq!(vgic.distributor_needs(offset, Direction::Write), expected, "{offset:#x}");
        }
    }
    assert_eq!(vgic.redistributor_needs(VcpuId(3), private(0x200), Direction::Read), VcpuSet::EMPTY);
}

#[test]
fn only_its_own_vcpu_is_told_when_a_redistributor_falls_asleep() {
    let mut vgic = super::ready(2, 4);
    vgic.set_spi_level(super::SPI, crate::Line::High);
    let sleep = |vgic: &mut Vgic, vcpu, value| vgic.redistributor_write(vcpu, 0x14, AccessSize::Word, value);
    assert_eq!(sleep(&mut vgic, ONE, 2), VcpuSet::EMPTY, "nothing waits there");
    assert_eq!(sleep(&mut vgic, ZERO, 2), VcpuSet::only(ZERO));
    assert_eq!(sleep(&mut vgic, ZERO, 2), VcpuSet::EMPTY, "it sleeps already");
    vgic.set_ppi_level(ONE, units::IntId(23), crate::Line::High);
    assert_eq!(sleep(&mut vgic, ONE, 0), VcpuSet::only(ONE));
}

#[test]
fn reset_forgets_everything() {
    let mut vgic = super::ready(2, 4);
    vgic.distributor_write(0x6100, AccessSize::Double, 1);
    write(&mut vgic, 0x204, 1);
    vgic.reset();
    for offset in [0x104, 0x204, 0x420, 0x6100] {
        assert_eq!(read(&vgic, offset), 0);
    }
    assert_eq!(read(&vgic, 0), 0x50);
    assert!(vgic.is_quiet(ONE));
}
