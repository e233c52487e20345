//! `croft`'s side: turns VMs with their files' contents into the bytes of a bundle.

use super::{
    BLOB_ALIGNMENT, Blob, Bundle, BundleError, FORMAT, HEADER_LENGTH, Head, MAGIC, MAX_VMS, Program, Vm, VmConfig,
    VmProblem,
};
use crate::crc32c;
use alloc::vec::Vec;

/// A VM with the contents of its files; an empty initial ramdisk counts as none.
pub type VmSource<'a> = Vm<&'a str, &'a [u8], Program>;

/// The blobs so far: equal contents are stored once, since VMs often share a kernel. Offsets count from 0 here and are
/// moved when the manifest's length is known.
#[derive(Default)]
struct Blobs<'a> {
    stored: Vec<(&'a [u8], Blob)>,
    end: u64,
}

impl<'a> Blobs<'a> {
    fn add(&mut self, bytes: &'a [u8]) -> Blob {
        let crc32c = crc32c::compute(0, bytes);
        if let Some((_, blob)) = self.stored.iter().find(|(other, blob)| blob.crc32c == crc32c && *other == bytes) {
            return *blob;
        }
        let blob = Blob { offset: self.end, length: bytes.len() as u64, crc32c };
        self.end = (self.end + blob.length).next_multiple_of(BLOB_ALIGNMENT);
        self.stored.push((bytes, blob));
        blob
    }
}

/// The manifest with all blobs moved up by `base` bytes.
fn manifest(made_by: &str, vms: &[VmConfig<'_>], base: u64) -> Result<Vec<u8>, BundleError> {
    let vm_count = u16::try_from(vms.len()).unwrap_or(u16::MAX);
    let mut bytes = postcard::to_allocvec(&Head { made_by, vm_count }).map_err(|_| BundleError::Manifest)?;
    for vm in vms {
        let moved = |blob: Blob| Blob { offset: blob.offset + base, ..blob };
        let disks = vm.disks.with(|text| *text, |image| moved(*image));
        let vm = VmConfig { kernel: moved(vm.kernel), initrd: vm.initrd.map(moved), disks, ..*vm };
        bytes.extend(postcard::to_allocvec(&vm).map_err(|_| BundleError::Manifest)?);
    }
    Ok(bytes)
}

fn header(manifest: &[u8], total_length: u64) -> [u8; HEADER_LENGTH] {
    let mut header = [0; HEADER_LENGTH];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &MAGIC);
    put(8, &FORMAT.to_le_bytes());
    put(16, &total_length.to_le_bytes());
    put(24, &(HEADER_LENGTH as u64).to_le_bytes());
    put(32, &(manifest.len() as u64).to_le_bytes());
    put(40, &crc32c::compute(0, manifest).to_le_bytes());
    let checksum = crc32c::compute(0, &header[..60]);
    header[60..].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// The bundle of `vms`; `made_by` is the writing tool's name and version. What it returns parses.
///
/// # Errors
/// What [`Bundle::parse`] would say of the result.
pub fn write(made_by: &str, vms: &[VmSource<'_>]) -> Result<Vec<u8>, BundleError> {
    if vms.is_empty() || vms.len() > MAX_VMS {
        return Err(BundleError::VmCount(u16::try_from(vms.len()).unwrap_or(u16::MAX)));
    }
    let mut blobs = Blobs::default();
    let mut configs = Vec::with_capacity(vms.len());
    for (index, vm) in vms.iter().enumerate() {
        if vm.kernel.is_empty() {
            return Err(BundleError::Vm { index: index as u16, problem: VmProblem::BlobOutside });
        }
        let kernel = blobs.add(vm.kernel);
        let initrd = vm.initrd.filter(|bytes| !bytes.is_empty()).map(|bytes| blobs.add(bytes));
        let disks = vm.disks.with(|text| *text, |image| blobs.add(image));
        configs.push(vm.with(|text| *text, kernel, vm.program, initrd, disks));
    }
    // Offsets are variable-length numbers: the manifest grows with the base, and settles after a round or two.
    let mut base = BLOB_ALIGNMENT;
    let manifest = loop {
        let manifest = manifest(made_by, &configs, base)?;
        let needed = ((HEADER_LENGTH + manifest.len()) as u64).next_multiple_of(BLOB_ALIGNMENT);
        if needed <= base {
            break manifest;
        }
        base = needed;
    };
    let total_length = base + blobs.end;
    let mut bytes = Vec::with_capacity(total_length as usize);
    bytes.extend_from_slice(&header(&manifest, total_length));
    bytes.extend_from_slice(&manifest);
    for (contents, blob) in &blobs.stored {
        bytes.resize((base + blob.offset) as usize, 0);
        bytes.extend_from_slice(contents);
    }
    bytes.resize(total_length as usize, 0);
    Bundle::parse(&bytes, crc32c::compute)?;
    Ok(bytes)
}
