//! The smallest payload: one line, then power off.
#![no_std]
#![no_main]

use payload_rt::{cpu, machine, println, sysreg};

payload_rt::entry!(main);

fn main() {
    let machine = machine::machine();
    let level = sysreg::currentel::read() >> 2;
    println!("hello from EL{level} at {:#x}", machine::image().start);
    println!("tree at {:#x}, initrd {:#x}..{:#x}", machine.device_tree.start, machine.initrd.start, machine.initrd.end);
    println!("RAM {:#x?}, {} CPUs, command line \"{}\"", machine.ram, cpu::count(), machine.command_line);
    println!("payload: 1 passed, 0 failed, 0 skipped");
}
