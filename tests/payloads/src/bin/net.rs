//! Networks (virtio 1.3, 5.1): four ports of this VM: two on one network, the third on
//! another, and the fourth in a VLAN of the first. What is sent arrives whole
//! where it may, and nowhere else, whatever a driver says of its frames, its addresses and its rings.
//!
//! A frame is delivered before its sender's notification is over, so nothing here waits for one, and what has not arrived then does not come.
#![no_std]
#![no_main]

use payload_rt::test::{self, Stop, Verdict};
use payload_rt::virtio::{self, BufferDirection, Device, Queue, register as r};
use payload_rt::{check, check_equal, machine, memory, println, skip, tests, timer};

payload_rt::entry!(main);

fn main() {
    announce_warnings();
    test::run(&tests!("net":
        says_what_it_is, every_length, several_buffers, forged_addresses, other_networks, foreign_vlans, crumbs, everybody, floods, headers, checksums,
        into_untouched_memory, open_across_borders, many_pieces, broken_rings, works_after_all_that,
    ));
}

/// What the hypervisor's log is to say of [`broken_rings`], for the gate to compare.
fn announce_warnings() {
    if test::is_selected("net::broken_rings") && virtio::find(virtio::NET).is_some() {
        println!("# warned: virtio-net: ");
    }
}

/// The addresses that the site file gives the ports: these, and a last byte of 1 for the first.
const ADDRESS: [u8; 5] = [0x52, 0x54, 0, 0xaa, 0xbb];
const EVERYBODY: [u8; 6] = [0xff; 6];
/// The MTU of both networks.
const MTU: u32 = 65_535;
/// Bytes before a frame, and in its head.
const HEADER: u32 = 12;
const HEAD: u32 = 14;
/// The most bytes that a frame has.
const MOST: u32 = 65_550;
/// VIRTIO_NET_F_CSUM, _GUEST_CSUM, _MTU, _MAC, _HOST_TSO4, _MRG_RXBUF and _STATUS.
const CHECKSUM: u32 = 1;
const GUEST_CHECKSUM: u32 = 2;
const DIVIDES: u32 = 1 << 11;
const MERGEABLE: u32 = 1 << 15;
const KNOWN: u32 = 1 << 3 | 1 << 5 | 1 << 16;

const fn address(port: u8) -> [u8; 6] {
    let [a, b, c, d, e] = ADDRESS;
    [a, b, c, d, e, port + 1]
}

/// A port that is ready.
struct Port {
    device: Device,
    receive: Queue,
    send: Queue,
    /// Where frames are made, and where they arrive.
    frame: u64,
    room: u64,
}

fn port(number: usize, features: u32) -> Result<Port, Stop> {
    let Some(device) = virtio::find_nth(virtio::NET, number) else { skip!("no virtio network device {number}") };
    check!(device.start_with(features), "negotiation fails, status {:#x}", device.read(r::STATUS));
    let (receive, send) = (device.queue(0), device.queue(1));
    device.ready();
    Ok(Port { device, receive, send, frame: memory::pages(17), room: memory::pages(17) })
}

impl Port {
    /// Makes a frame of zeros with a header of zeros.
    fn head(&self, to: [u8; 6], from: [u8; 6]) {
        memory::write64(self.frame, 0);
        memory::write32(self.frame + 8, 0);
        let all = to.into_iter().chain(from).chain([8, 0]);
        (self.frame + u64::from(HEADER)..).zip(all).for_each(|(at, byte)| memory::write8(at, byte));
    }

    /// It is of IPv4, and has this in it.
    fn packet(&self, protocol: u8) {
        memory::write8(self.frame + u64::from(HEADER) + 14, 0x45);
        memory::write8(self.frame + u64::from(HEADER) + 23, protocol);
    }

    /// Its checksum of UDP is open.
    fn open(&self) {
        self.packet(17);
        memory::write8(self.frame, 1);
        memory::write16(self.frame + 6, 34);
        memory::write16(self.frame + 8, 6);
    }

    /// Sends header and frame, so many bytes together.
    fn send(&mut self, bytes: u32) -> Verdict {
        self.send.offer(self.frame, bytes, BufferDirection::ToDevice);
        check!(timer::wait_until(5000, || self.send.is_done()), "a chain of {bytes} bytes does not come back");
        Ok(())
    }

    /// Sends a frame of 60 bytes.
    fn say(&mut self, to: [u8; 6], from: [u8; 6]) -> Verdict {
        self.head(to, from);
        self.send(HEADER + 60)
    }

    /// Gives a buffer of so many bytes.
    fn give(&mut self, bytes: u32) {
        self.receive.offer(self.room, bytes, BufferDirection::FromDevice);
    }

    /// How many bytes have arrived in it, if any have.
    fn arrived(&self) -> Option<u32> {
        self.receive.is_done().then(|| self.receive.written())
    }

    fn off(self) {
        self.device.write(r::STATUS, 0);
    }
}

fn says_what_it_is() -> Verdict {
    let one = port(0, KNOWN)?;
    for (offset, byte) in (0x100..).zip(address(0)) {
        check_equal!(memory::read8(one.device.base + offset), byte, "byte {offset:#x} of the configuration");
    }
    check_equal!(memory::read16(one.device.base + 0x106), 1, "the link's status");
    check_equal!(u32::from(memory::read16(one.device.base + 0x10a)), MTU, "MTU");
    one.device.write(r::DEVICE_FEATURES_SEL, 0);
    check_equal!(one.device.read(r::DEVICE_FEATURES) & 0x00ff_ffff, 0x1_bbab, "features");
    one.off();
    Ok(())
}

/// Every length of a chain: what is no frame does not arrive, and everything else as it was sent.
fn every_length() -> Verdict {
    let (mut one, mut two) = (port(0, 0)?, port(1, 0)?);
    one.head(address(1), address(0));
    for word in 4..(u64::from(HEADER + MOST) + 16) / 8 {
        memory::write64(one.frame + 8 * word, word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }
    two.give(66_000);
    for bytes in 0..=HEADER + MOST + 1 {
        one.send(bytes)?;
        let is_frame = (HEADER + HEAD..=HEADER + MOST).contains(&bytes);
        check_equal!(two.arrived(), is_frame.then_some(bytes), "a chain of {bytes} bytes");
        if !is_frame {
            continue;
        }
        // The whole of some, and the ends of each.
        let from = if bytes % 4096 < 2 { HEADER } else { bytes.saturating_sub(9).max(HEADER) };
        for offset in u64::from(from)..u64::from(bytes) {
            let (sent, found) = (memory::read8(one.frame + offset), memory::read8(two.room + offset));
            check_equal!(found, sent, "byte {offset} of {bytes}");
        }
        memory::write8(two.room + u64::from(bytes) - 1, 0x77);
        two.give(66_000);
    }
    check_equal!(memory::read64(two.room) | u64::from(memory::read16(two.room + 8)), 0, "header");
    check_equal!(memory::read16(two.room + 10), 1, "buffers");
    one.off();
    two.off();
    Ok(())
}

/// A frame in several buffers, which the driver sees all at once; and one for which there are too few, of which it sees nothing.
fn several_buffers() -> Verdict {
    let (mut one, mut two) = (port(0, 0)?, port(1, MERGEABLE)?);
    one.head(address(1), address(0));
    (26..4000).for_each(|offset| memory::write8(one.frame + offset, offset as u8));
    let room = two.room;
    (0..2).for_each(|nth| two.receive.offer(room + nth * 1500, 1500, BufferDirection::FromDevice));
    one.send(4000)?;
    check_equal!(two.receive.returned(), 0, "buffers of a frame that does not fit");
    two.receive.offer(room + 3000, 1500, BufferDirection::FromDevice);
    one.send(4000)?;
    check_equal!(two.receive.returned(), 3, "buffers");
    check_equal!(memory::read16(room + 10), 3, "buffers, as the header says");
    for offset in 26..4000 {
        check_equal!(memory::read8(room + offset), offset as u8, "byte {offset}");
    }
    one.off();
    two.off();
    Ok(())
}

fn forged_addresses() -> Verdict {
    let (mut one, mut two) = (port(0, 0)?, port(1, 0)?);
    two.give(2048);
    let [a, b, c, d, e, f] = address(0);
    let others = [
        address(1),
        address(2),
        EVERYBODY,
        [0; 6],
        [a, b, c, d, e, f ^ 0x80],
        [a ^ 2, b, c, d, e, f],
        [a, b ^ 1, c, d, e, f],
    ];
    for from in others {
        for to in [address(1), EVERYBODY] {
            one.say(to, from)?;
            check_equal!(two.arrived(), None, "from {from:x?} to {to:x?}");
        }
    }
    one.say(address(1), address(0))?;
    check_equal!(two.arrived(), Some(72), "from its own address");
    one.off();
    two.off();
    Ok(())
}

/// What is on another network, or in another VLAN, is nobody here, and a bridge's own addresses are for nobody.
fn other_networks() -> Verdict {
    let mut one = port(0, 0)?;
    one.give(2048);
    for other in [2, 3] {
        let mut far = port(other, 0)?;
        far.give(2048);
        let reserved = [1, 0x80, 0xc2, 0, 0, 0];
        for to in [address(2), address(3), EVERYBODY, [0x33, 0x33, 0, 0, 0, 1], reserved, address(0), address(77)] {
            one.say(to, address(0))?;
            check_equal!(far.arrived(), None, "to {to:x?}, at port {other}");
            check_equal!(one.arrived(), None, "back, to {to:x?}");
        }
        for to in [address(0), address(1), EVERYBODY] {
            far.say(to, address(other as u8))?;
            check_equal!(one.arrived(), None, "to {to:x?}, from port {other}");
        }
        far.off();
    }
    one.off();
    Ok(())
}

/// A frame with a tag of any kind and number reaches nobody, in that VLAN or without one.
fn foreign_vlans() -> Verdict {
    let (mut one, mut two, mut far) = (port(0, 0)?, port(1, 0)?, port(3, 0)?);
    two.give(2048);
    far.give(2048);
    for [high, low] in [[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]] {
        for vlan in [0, 1, 7, 4095, 0x1007] {
            for to in [address(1), address(3), EVERYBODY] {
                one.head(to, address(0));
                let body = one.frame + u64::from(HEADER);
                let tag = [high, low, (vlan >> 8) as u8, vlan as u8, 8, 0];
                (body + 12..).zip(tag).for_each(|(at, byte)| memory::write8(at, byte));
                one.send(HEADER + 64)?;
                check_equal!((two.arrived(), far.arrived()), (None, None), "{vlan:#x} to {to:x?}");
            }
        }
    }
    one.say(address(1), address(0))?;
    check_equal!(two.arrived(), Some(72), "without a tag");
    one.off();
    two.off();
    far.off();
    Ok(())
}

/// A receiver whose buffers are of a byte each costs its senders little: a frame for it is dropped, and the next one goes on.
fn crumbs() -> Verdict {
    let (mut one, mut two) = (port(0, 0)?, port(1, MERGEABLE)?);
    one.head(address(1), address(0));
    let crumbs: [_; 64] = core::array::from_fn(|nth| (two.room + nth as u64, 1, BufferDirection::FromDevice));
    (0..16).for_each(|_| two.receive.offer_pieces(&crumbs));
    one.send(HEADER + 1500)?;
    check_equal!(two.receive.returned(), 0, "buffers of a frame that does not fit");
    two.off();
    let mut two = port(1, 0)?;
    two.give(2048);
    one.say(address(1), address(0))?;
    check_equal!(two.arrived(), Some(72), "after that");
    one.off();
    two.off();
    Ok(())
}

fn everybody() -> Verdict {
    let (mut one, mut two) = (port(0, 0)?, port(1, 0)?);
    for to in [EVERYBODY, [1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]] {
        two.give(2048);
        one.say(to, address(0))?;
        check_equal!(two.arrived(), Some(72), "to {to:x?}");
    }
    // To one that is there no more.
    two.device.write(r::STATUS, 0);
    one.say(address(1), address(0))?;
    one.off();
    Ok(())
}

/// A guest that floods: most of that is dropped, and frames for one go on.
fn floods() -> Verdict {
    let (mut one, mut two) = (port(0, 0)?, port(1, 0)?);
    let (mut count, start) = (0, timer::now());
    for _ in 0..2000 {
        if two.arrived().is_some() {
            count += 1;
        }
        if two.receive.is_done() {
            two.give(2048);
        }
        one.say(EVERYBODY, address(0))?;
    }
    let milliseconds = (timer::now() - start) / timer::microseconds(1000).max(1);
    check!(count <= 256 + milliseconds + 1, "{count} of 2000 frames have arrived in {milliseconds} ms");
    check!(count >= 100, "only {count} frames have arrived");
    if two.receive.is_done() {
        two.give(2048);
    }
    one.say(address(1), address(0))?;
    check_equal!(two.arrived(), Some(72), "to one station");
    one.off();
    two.off();
    Ok(())
}

/// Whatever a header says, the receiver's agrees with its frame, or nothing arrives.
fn headers() -> Verdict {
    let (mut one, mut two) = (port(0, CHECKSUM | DIVIDES)?, port(1, GUEST_CHECKSUM)?);
    two.give(2048);
    let (mut state, mut plain, mut open) = (1_u64, 0, 0);
    for round in 0..3000 {
        one.head(address(1), address(0));
        one.packet(17);
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let random = state >> 8;
        // Half of them with small numbers, which may be right, and some with UDP's checksum where it is.
        let words = match round & 3 {
            0 | 1 => random,
            2 => random & 0x003f_003f_003f_0503,
            _ => random & 0x003f_0000_0000_0001 | 34 << 48,
        };
        memory::write64(one.frame, words);
        memory::write32(one.frame + 8, if round & 3 == 3 { 6 } else { (state >> 40) as u32 });
        let flags = memory::read8(one.frame);
        one.send(HEADER + 60)?;
        if two.arrived().is_none() {
            continue;
        }
        let (start, offset) = (memory::read16(two.room + 6), memory::read16(two.room + 8));
        check_equal!(memory::read8(two.room), flags & 1, "flags of {words:#x}");
        check_equal!(memory::read8(two.room + 1), 0, "kind of {words:#x}, which nobody here accepts");
        check_equal!(memory::read32(two.room + 2), 0, "segments of {words:#x}");
        check!(flags & 1 == 0 || start >= 34 && offset == 6 && start <= 52, "{start} and {offset} of {words:#x}");
        if flags & 1 == 0 {
            plain += 1
        } else {
            open += 1
        }
        two.give(2048);
    }
    check!(plain > 100 && open > 100, "only {plain} frames and {open} with an open checksum have arrived");
    one.off();
    two.off();
    Ok(())
}

/// A checksum that is open is computed for a driver that takes none open, and left open for one that does.
fn checksums() -> Verdict {
    let mut one = port(0, CHECKSUM)?;
    for (features, flags) in [(0, 0), (GUEST_CHECKSUM, 1)] {
        let mut two = port(1, features)?;
        two.give(2048);
        one.head(address(1), address(0));
        let body = one.frame + u64::from(HEADER);
        (14..100).for_each(|offset| memory::write8(body + offset, (offset * 3) as u8));
        one.open();
        one.send(HEADER + 100)?;
        check_equal!((two.arrived(), memory::read8(two.room)), (Some(112), flags), "bytes, and flags");
        let found = two.room + u64::from(HEADER);
        let word = |at: u64| u32::from(memory::read8(found + at)) << 8 | u32::from(memory::read8(found + at + 1));
        // What was where the checksum goes is part of the sum.
        let own = u32::from(memory::read8(body + 40)) << 8 | u32::from(memory::read8(body + 41));
        let sum = (34..100).step_by(2).filter(|&at| at != 40).map(word).sum::<u32>() + own;
        let folded = (sum & 0xffff) + (sum >> 16);
        let expected = if flags == 0 { !((folded & 0xffff) + (folded >> 16)) & 0xffff } else { own };
        check_equal!(word(40), expected, "checksum for features {features}");
        two.off();
    }
    one.off();
    Ok(())
}

/// A buffer in RAM that was never touched: the first frame may be lost, and the memory is made ready then.
fn into_untouched_memory() -> Verdict {
    let (mut one, mut two) = (port(0, 0)?, port(1, 0)?);
    let mut blocks = memory::untouched_blocks().skip(4);
    for _ in 0..3 {
        let Some(block) = blocks.next() else { skip!("too little RAM that nothing lies in") };
        let place = block + 0x1_f000;
        two.receive.offer(place, 2048, BufferDirection::FromDevice);
        let arrives = timer::wait_until(5000, || {
            let _ = one.say(address(1), address(0));
            timer::sleep(1000);
            two.receive.is_done()
        });
        check!(arrives, "no frame arrives at {place:#x}");
        check_equal!(two.receive.written(), 72, "bytes");
        check_equal!(memory::read64(place + 12) & 0xffff_ffff_ffff, 0x02bb_aa00_5452, "destination");
        check_equal!((memory::read64(place - 8), memory::read64(place + 72)), (0, 0), "beside the frame");
    }
    // And one that is sent from there.
    let Some(block) = blocks.next() else { skip!("too little RAM that nothing lies in") };
    two.give(2048);
    one.send.offer_pieces(&[(one.frame, 26, BufferDirection::ToDevice), (block, 100, BufferDirection::ToDevice)]);
    check!(timer::wait_until(5000, || one.send.is_done()), "a frame in untouched memory is not sent");
    check_equal!(two.arrived(), Some(126), "bytes of it");
    one.off();
    two.off();
    Ok(())
}

/// A frame whose checksum is open, and is to be computed, in a buffer of which the second half is in a block that was never touched: it is made
/// ready, and the frame goes. Where the second half is no RAM, its device stops. Neither is tried for ever.
fn open_across_borders() -> Verdict {
    let (mut one, mut two) = (port(0, CHECKSUM)?, port(1, 0)?);
    two.give(2048);
    one.head(address(1), address(0));
    one.open();
    let Some(border) = memory::untouched_blocks().nth(10) else { skip!("too little RAM that nothing lies in") };
    let head = u64::from(HEADER + 40);
    (0..head).for_each(|offset| memory::write8(border - head + offset, memory::read8(one.frame + offset)));
    one.send.offer(border - head, HEADER + 100, BufferDirection::ToDevice);
    check!(timer::wait_until(5000, || one.send.is_done()), "a frame across the border of a block is not sent");
    check_equal!(two.arrived(), Some(112), "bytes of it");
    check_equal!(memory::read16(two.room + u64::from(HEADER) + 40), 0xffff, "its checksum, of zeros");
    two.give(2048);
    let end = machine::machine().ram.end - head;
    (0..head).for_each(|offset| memory::write8(end + offset, memory::read8(one.frame + offset)));
    one.send.offer(end, HEADER + 100, BufferDirection::ToDevice);
    let is_stopped = || one.device.read(r::STATUS) & virtio::STATUS_NEEDS_RESET != 0;
    check!(timer::wait_until(5000, is_stopped), "a frame across the end of RAM is tried for ever");
    check_equal!(two.arrived(), None, "bytes of it");
    one.off();
    two.off();
    Ok(())
}

/// A frame in as many small pieces as a ring has: they are of the sender's making, and cost its receiver no frame.
fn many_pieces() -> Verdict {
    for (pieces, features) in [(18_u32, 0), (18, CHECKSUM), (64, 0), (64, CHECKSUM)] {
        for bytes in [64, 300, 1400] {
            let (mut one, mut two) = (port(0, features)?, port(1, 0)?);
            two.give(2048);
            one.head(address(1), address(0));
            if features != 0 {
                one.open();
            }
            let all = HEADER + bytes;
            let cut = |nth: u32| nth * all / pieces;
            let parts: [_; 64] = core::array::from_fn(|nth| {
                let nth = nth as u32;
                let at = one.frame + u64::from(cut(nth));
                (at, cut(nth + 1) - cut(nth), BufferDirection::ToDevice)
            });
            one.send.offer_pieces(parts.get(..pieces as usize).unwrap_or(&parts));
            check!(timer::wait_until(5000, || one.send.is_done()), "{pieces} pieces do not come back");
            check_equal!(two.arrived(), Some(all), "{bytes} bytes in {pieces} pieces");
            one.off();
            two.off();
        }
    }
    Ok(())
}

/// Rings and buffers that are not in memory: the device whose they are stops, and no other.
fn broken_rings() -> Verdict {
    let stopped = |port: &Port| port.device.read(r::STATUS) & virtio::STATUS_NEEDS_RESET != 0;
    let (mut one, mut two, three) = (port(0, 0)?, port(1, 0)?, port(2, 0)?);
    two.receive.offer(0x10, 2048, BufferDirection::FromDevice);
    one.say(address(1), address(0))?;
    check!(stopped(&two) && !stopped(&one), "a receiver with a buffer nowhere goes on, or its sender does not");
    one.say(address(1), address(0))?;
    one.say(EVERYBODY, address(0))?;
    // An available index that is too far ahead.
    let mut two_again = port(1, 0)?;
    memory::write16(two_again.receive.memory() + 0x402, 0x4000);
    one.say(address(1), address(0))?;
    check!(stopped(&two_again), "a receiver with a wrong index goes on");
    two_again = port(1, 0)?;
    two_again.give(2048);
    one.say(address(1), address(0))?;
    check_equal!(two_again.arrived(), Some(72), "bytes, after a reset");
    // A sender whose frame lies nowhere.
    three.head(address(0), address(2));
    one.head(address(1), address(0));
    two_again.give(2048);
    one.send.offer_pieces(&[(one.frame, 26, BufferDirection::ToDevice), (0x10, 100, BufferDirection::ToDevice)]);
    check!(timer::wait_until(5000, || stopped(&one)), "a sender with a frame nowhere goes on");
    check_equal!((two_again.arrived(), stopped(&two_again)), (None, false), "its receiver");
    one.off();
    two_again.off();
    three.off();
    Ok(())
}

fn works_after_all_that() -> Verdict {
    if machine::is_reference() {
        skip!("there is no second port");
    }
    several_buffers()
}
