//! Unit tests: the registers one family at a time, then the life of each kind of interrupt. What random guests see is
//! compared with a naive second model in `tests/against_naive.rs`.

mod common_registers;
mod ends;
mod group_zero;
mod life;
mod registers;
mod routing;
mod saved;
mod short;
mod shortage;

use crate::{AccessSize, Config, Group, ListRegisters, Power, Vgic, list_register as field, virtual_interface};
use units::{IntId, VcpuId, VcpuSet};

const ZERO: VcpuId = VcpuId(0);
const ONE: VcpuId = VcpuId(1);
/// The first SPI, and the word and bit it has in GICD_I*R.
const SPI: IntId = IntId(32);
const SPI_WORD: u64 = 4;

/// SGI_base's ISENABLER0 and its neighbours, seen from RD_base.
const fn private(offset: u64) -> u64 {
    0x1_0000 + offset
}

fn vgic(vcpus: usize, list_registers: usize) -> Vgic {
    let mut vgic = Vgic::new(Config {
        vcpus,
        list_registers,
        priority_bits: 5,
        preemption_bits: 5,
        tells_of_group_0: true,
        traps_deactivation: true,
    });
    for vcpu in 0..vcpus {
        vgic.set_power(VcpuId(vcpu as u8), Power::On);
    }
    vgic
}

/// A guest that has enabled everything, in Group 1, at priority 0xA0.
fn ready(vcpus: usize, list_registers: usize) -> Vgic {
    let mut vgic = vgic(vcpus, list_registers);
    for word in 1..4 {
        write(&mut vgic, 0x080 + word * 4, 0xFFFF_FFFF);
        write(&mut vgic, 0x100 + word * 4, 0xFFFF_FFFF);
    }
    for offset in (0x420..0x480).step_by(4) {
        write(&mut vgic, offset, 0xA0A0_A0A0);
    }
    for vcpu in (0..vcpus as u8).map(VcpuId) {
        let word = AccessSize::Word;
        vgic.redistributor_write(vcpu, private(0x080), word, 0xFFFF_FFFF);
        vgic.redistributor_write(vcpu, private(0x100), word, 0xFFFF_FFFF);
        for offset in (0x400..0x420).step_by(4) {
            vgic.redistributor_write(vcpu, private(offset), word, 0xA0A0_A0A0);
        }
    }
    write(&mut vgic, 0, 0b11);
    vgic
}

/// Empty list registers, beside a CPU interface that has both groups enabled.
fn list_registers() -> ListRegisters {
    ListRegisters { vmcr: virtual_interface::GROUPS, ..ListRegisters::new() }
}

fn write(vgic: &mut Vgic, offset: u64, value: u64) -> VcpuSet {
    vgic.distributor_write(offset, AccessSize::Word, value)
}

fn read(vgic: &Vgic, offset: u64) -> u64 {
    vgic.distributor_read(offset, AccessSize::Word)
}

/// One sync and flush; returns the other vCPUs that the sync names.
fn settle(vgic: &mut Vgic, vcpu: VcpuId, lrs: &mut ListRegisters) -> VcpuSet {
    let others = vgic.sync(vcpu, lrs);
    vgic.flush(vcpu, lrs);
    others
}

/// The INTID and state of the list registers in use.
fn shown(lrs: &ListRegisters) -> Vec<(u64, u64)> {
    let used = lrs.lr.iter().enumerate().filter(|(number, _)| lrs.used >> number & 1 != 0);
    used.map(|(_, lr)| (lr & field::VIRTUAL, lr >> 62)).collect()
}

/// The guest acknowledges the interrupt in list register `number`.
fn acknowledge(lrs: &mut ListRegisters, number: usize) {
    assert_eq!(lrs.lr[number] & field::STATE, field::PENDING);
    lrs.lr[number] ^= field::STATE;
}

/// The guest ends the interrupt in list register `number`.
fn end(lrs: &mut ListRegisters, number: usize) {
    assert_ne!(lrs.lr[number] & field::ACTIVE, 0);
    lrs.lr[number] &= !field::ACTIVE;
}

const PENDING: u64 = 1;
const ACTIVE: u64 = 2;
const BOTH: u64 = 3;

extern crate std;
use std::vec::Vec;

/// The value of ICC_SGI1R_EL1 for SGI `id` to the vCPUs of `list`.
const fn sgi(id: u64, list: u64) -> u64 {
    id << 24 | list
}

const GROUP1: Group = Group::One;
