//! The readers of files, streams and instructions: no panic, and nothing outside what was given.

use a64::{Instruction, Transfer};
use abi::Crc32c;
use abi::bundle::{BLOB_ALIGNMENT, Bundle, FORMAT, HEADER_LENGTH, MAGIC};
use abi::link::request::{Reply, Request as LinkRequest};
use abi::link::{Command, Decoder, Message};
use cpu::exit::Exit;
use cpu::table_walk::{Regime, refused_level};
use platform::{Console, Platform};
use services::{Facts, Request};
use units::{Ipa, Pa, Va};

use super::input::Input;

/// A checksum that is right wherever the file has zeros, which a fuzzer finds sooner than a CRC.
fn no_checksum(_seed: u32, _bytes: &[u8]) -> u32 {
    0
}

/// The bundle: `data` as a whole file, and as the manifest of a file that is otherwise sound.
pub fn bundle(data: &[u8]) {
    check_bundle(data, abi::crc32c::compute);
    check_bundle(data, no_checksum);
    let mut file = MAGIC.to_vec();
    let blobs = (HEADER_LENGTH + data.len()).next_multiple_of(BLOB_ALIGNMENT as usize);
    let total = blobs + 2 * BLOB_ALIGNMENT as usize;
    for field in [FORMAT.into(), total as u64, HEADER_LENGTH as u64, data.len() as u64] {
        file.extend(field.to_le_bytes());
    }
    file.resize(HEADER_LENGTH, 0);
    file.extend(data);
    file.resize(total, 0);
    check_bundle(&file, no_checksum);
}

/// Each blob of a bundle that is accepted lies in it.
fn check_bundle(file: &[u8], checksum: Crc32c) {
    let Ok(bundle) = Bundle::parse(file, checksum) else { return };
    let vms: Vec<_> = bundle.vms().collect();
    assert_eq!(vms.len(), bundle.vm_count());
    for vm in vms {
        for blob in [Some(vm.kernel), vm.initrd].into_iter().flatten() {
            let bytes = bundle.blob(&blob).expect("a bundle that was accepted holds its blobs");
            assert_eq!(bytes.len() as u64, blob.length);
            let _ = bundle.verify(&blob);
        }
    }
}

/// The framed byte stream, and the messages in it.
pub fn link(data: &[u8]) {
    let mut decoder = Decoder::new(no_checksum);
    for &byte in data {
        let _ = decoder.push(byte);
    }
    let _ = decoder.finish();
    let mut bulk = Decoder::with_buffer(vec![0; abi::link::decoder_buffer(abi::link::MAX_BULK)], no_checksum);
    let mut rest = data;
    while bulk.take(&mut rest).is_some() {}
    assert!(rest.is_empty(), "everything was taken");
    let mut buffer = [0; abi::link::MAX_PAYLOAD];
    let data = data.get(..buffer.len()).unwrap_or(data);
    if let Some(message) = Message::decode(data) {
        let encoded = message.encode(&mut buffer).expect("what was decoded fits a frame");
        assert_eq!(Message::decode(encoded), Some(message));
    }
    if let Some(request) = LinkRequest::decode(data) {
        let encoded = request.encode(&mut buffer).expect("what was decoded fits a frame");
        assert_eq!(LinkRequest::decode(encoded), Some(request));
    }
    if let Some(reply) = Reply::decode(data) {
        let encoded = reply.encode(&mut buffer).expect("what was decoded fits a frame");
        assert_eq!(Reply::decode(encoded), Some(reply));
    }
    if let Some(command) = Command::decode(data) {
        let encoded = command.encode(&mut buffer).expect("what was decoded fits a frame");
        assert_eq!(Command::decode(encoded), Some(command));
    }
}

/// The host's device tree.
pub fn device_tree(data: &[u8]) {
    if let Some(header) = data.first_chunk() {
        let _ = platform::device_tree_size(*header);
    }
    let _ = Console::from_device_tree(data);
    if let Ok(platform) = Platform::from_device_tree(data, Pa(0x4000_0000)) {
        assert!(!platform.cpus.is_empty() && !platform.memory.is_empty());
    }
}

/// The header of a kernel image, and of a hypervisor's.
pub fn image(data: &[u8]) {
    let _ = machine::image::ImageHeader::parse(data);
}

/// The decoder of loads and stores, with random registers.
pub fn instruction(data: &[u8]) {
    let mut input = Input(data);
    while !input.is_empty() {
        if let Ok(Instruction::Transfer(transfer)) = a64::decode(input.word()) {
            check_transfer(&transfer, &mut input);
        }
    }
}

fn check_transfer(transfer: &Transfer, input: &mut Input<'_>) {
    let registers = core::array::from_fn(|_| input.double());
    let _ = transfer.resolve(&registers, input.double(), input.double());
    let accesses: Vec<_> = transfer.accesses().collect();
    assert!(matches!(accesses.len(), 1 | 2));
    for (_, access) in accesses {
        assert!(matches!(access.bytes, 1 | 2 | 4 | 8) && access.rt < 32);
    }
}

/// What a guest makes its CPU say: exits of any syndrome, calls with any arguments, and its own tables, anywhere.
pub fn exits(data: &[u8]) {
    let mut input = Input(data);
    while !input.is_empty() {
        let esr = u64::from(input.byte()) << 26 | u64::from(input.word());
        let (far, hpfar) = (input.double(), input.double());
        if let Exit::SystemRegister(access) = cpu::exit::decode(esr, far, hpfar) {
            let _ = cpu::sysreg::classify(access.encoding, access.direction);
        }
        let facts = Facts { stolen_time: (esr & 1 != 0).then_some(Ipa(hpfar)), ..Facts::default() };
        if let Request::Entropy(draw) = services::decode(esr << 24 | esr & 0xffff, [far, hpfar, esr], &facts) {
            assert!(draw.bits() <= 192);
        }
        let regime = Regime { tcr_el1: input.double(), ttbr0_el1: hpfar, ttbr1_el1: far, sctlr_el1: esr };
        let mut reads = 0;
        let level = refused_level(&regime, Va(far), Ipa(hpfar), |at| {
            reads += 1;
            (at.0 & 8 == 0).then_some((hpfar ^ at.0 | 3).to_le_bytes())
        });
        assert!(level.is_none_or(|level| level <= 3) && reads <= 4);
    }
}
