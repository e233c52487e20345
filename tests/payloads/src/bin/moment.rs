//! A guest that is saved while it runs, and notices if the saved memory is not that of one moment.
//!
//! It goes through many pages again and again, and gives each word of each page its next value. Before it does, the word must have its
//! previous value; only its registers know how far the sweep has come. So a page that was saved later than the registers, or earlier,
//! or in two halves, is found when the sweep next reaches it. Between two sweeps its entropy device stores into a block in which it
//! never stores itself, and what is there must still be what was there last. After each sweep it prints its number, and the longest
//! time for which it did not run in between, in ticks of its counter, and how often it has found that VMClock's marker of disruptions
//! has changed. Only a fault that it finds ends it, and a letter that is typed: `p` powers it off, `r` resets it; of others it says which.
//!
//! It has touched all of its memory before it begins.
#![no_std]
#![no_main]

use payload_rt::virtio::{self, BufferDirection};
use payload_rt::{memory, println, psci, timer, uart, vmclock};

payload_rt::entry!(main);

/// Blocks of 2 MiB that it goes through.
const BLOCKS: usize = 16;
const PAGES: u64 = BLOCKS as u64 * IN_A_BLOCK;
const IN_A_BLOCK: u64 = 512;
const PAGE: u64 = 4096;
/// So often does it look whether something was typed.
const LOOKS: u64 = 64;

fn main() {
    // And one for the device.
    let mut blocks = [0; BLOCKS + 1];
    for (number, block) in memory::untouched_blocks().enumerate() {
        match blocks.get_mut(number) {
            Some(place) => *place = block,
            None => memory::write64(block, 1),
        }
    }
    let Some(device) = virtio::find(virtio::ENTROPY).filter(virtio::Device::start) else {
        fail("there is no entropy device")
    };
    let mut queue = device.queue(0);
    device.ready();
    let (buffer, mut drawn) = (blocks[BLOCKS], 0);
    let (mut marker, mut marks) = (vmclock::read().disruption, 0);
    println!("moment: begins.");
    for sweep in 1_u64.. {
        let (mut gap, mut before) = (0, timer::physical_now());
        for page in 0..PAGES {
            for word in 0..PAGE / 8 {
                let at = blocks[(page / IN_A_BLOCK) as usize] + page % IN_A_BLOCK * PAGE + word * 8;
                let number = page * (PAGE / 8) + word;
                if memory::read64(at) != value(sweep - 1, number) {
                    println!("moment: sweep {sweep}, page {page}, word {word}: {:#x}", memory::read64(at));
                    fail("a word is not what was stored");
                }
                memory::write64(at, value(sweep, number));
            }
            if page % LOOKS == 0 {
                obey();
            }
            let found = vmclock::read().disruption;
            marks += u64::from(found != marker);
            marker = found;
            let now = timer::physical_now();
            gap = gap.max(now - before);
            before = now;
        }
        if memory::read64(buffer) != drawn {
            fail("what the device stored has changed");
        }
        queue.offer(buffer, 8, BufferDirection::FromDevice);
        if !timer::wait_until(60_000, || queue.is_done()) {
            fail("the device does not store");
        }
        drawn = memory::read64(buffer);
        println!("moment: sweep {sweep}, marks {marks}, gap {gap}.");
    }
}

/// Does what was typed.
fn obey() {
    match uart::receive() {
        None => {}
        Some(b'p') => psci::system_off(),
        Some(b'r') => {
            let _ = psci::simple(psci::SYSTEM_RESET, [0; 3]);
        }
        Some(letter) => println!("moment: typed {}.", char::from(letter)),
    }
}

fn fail(why: &str) -> ! {
    println!("moment: FAILED: {why}");
    psci::system_off()
}

/// What a word is in a sweep, before the first of which all are zero.
fn value(sweep: u64, number: u64) -> u64 {
    if sweep == 0 { 0 } else { (sweep << 32 | number).wrapping_mul(0x9e37_79b9_7f4a_7c15) }
}
