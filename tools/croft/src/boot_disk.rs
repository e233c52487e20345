//! A disk that a machine with UEFI firmware boots the hypervisor from: a GPT (UEFI 2.11, chapter 5) with an EFI system partition.
//!
//! | file | what |
//! |---|---|
//! | `EFI/BOOT/BOOTAA64.EFI` | the loader, where firmware looks on a disk that it has no boot entry for |
//! | `undercroft/undercroft.img` | the hypervisor |
//! | `undercroft/site.bundle` | the site's bundle |
//! | `undercroft/arguments.txt` | the hypervisor's command line, which may be changed |
//!
//! The same parts make the same bytes: numbers that are usually random are given, and no time is written.

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use fscommon::StreamSlice;
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::{GptConfig, partition_types};
use std::io::{Cursor, Error, Result, Write};
use uuid::Uuid;

/// Where firmware looks for the loader, and where that looks for the rest.
const LOADER: &str = "EFI/BOOT/BOOTAA64.EFI";
const IMAGE: &str = "undercroft/undercroft.img";
const BUNDLE: &str = "undercroft/site.bundle";
const ARGUMENTS: &str = "undercroft/arguments.txt";

/// The most bytes that a file may have on FAT.
pub const LARGEST_FILE: u64 = u32::MAX as u64;

const SECTOR: u64 = 512;
/// Where the partition begins, and what its end is aligned to: what partitioning tools leave.
const ALIGNMENT: u64 = 1 << 20;
/// The smallest partition: below some 33 MiB there is no FAT32, the one kind that all firmware has to know on a fixed disk.
const LEAST: u64 = 64 << 20;
/// The number of this disk, and of its partition: any that is not another's.
const DISK: Uuid = Uuid::from_u128(0x756e_6465_7263_4726_8f74_0000_0000_0001);
const PARTITION: Uuid = Uuid::from_u128(0x756e_6465_7263_4726_8f74_0000_0000_0002);
const VOLUME: u32 = 0x756e_6463;

/// What goes onto the disk.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// `BOOTAA64.EFI`.
    pub loader: &'a [u8],
    /// The hypervisor's image.
    pub image: &'a [u8],
    /// The bundle.
    pub bundle: &'a [u8],
    /// The hypervisor's command line.
    pub arguments: &'a str,
}

/// Makes the disk.
///
/// # Errors
/// If a part is larger than a file on FAT may be, or there is no memory for it all.
pub fn make(parts: &Parts<'_>) -> Result<Vec<u8>> {
    let files =
        [(LOADER, parts.loader), (IMAGE, parts.image), (BUNDLE, parts.bundle), (ARGUMENTS, parts.arguments.as_bytes())];
    if let Some((name, bytes)) = files.iter().find(|(_, bytes)| bytes.len() as u64 > LARGEST_FILE) {
        let most = format!("{name} would have {} bytes, and a file on FAT has at most {LARGEST_FILE}", bytes.len());
        return Err(Error::other(most));
    }
    let contents: u64 = files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    // An eighth more than the files for the table of clusters and half-filled ones.
    let partition = (contents + contents / 8).max(LEAST).next_multiple_of(ALIGNMENT);
    let mut disk = Cursor::new(vec![0; (ALIGNMENT + partition + ALIGNMENT) as usize]);
    write_table(&mut disk, partition)?;
    let slice = StreamSlice::new(&mut disk, ALIGNMENT, ALIGNMENT + partition)?;
    write_files(slice, &files)?;
    Ok(disk.into_inner())
}

fn write_table(disk: &mut Cursor<Vec<u8>>, partition: u64) -> Result<()> {
    let sectors = disk.get_ref().len() as u64 / SECTOR;
    let protective = ProtectiveMBR::with_lb_size(u32::try_from(sectors - 1).unwrap_or(u32::MAX));
    protective.overwrite_lba0(disk).map_err(Error::other)?;
    let config = GptConfig::new().writable(true).logical_block_size(LogicalBlockSize::Lb512);
    let mut table = config.create_from_device(disk, Some(DISK)).map_err(Error::other)?;
    let first = ALIGNMENT / SECTOR;
    let number = table.add_partition_at("EFI system", 1, first, partition / SECTOR, partition_types::EFI, 0);
    let number = number.map_err(Error::other)?;
    let mut partitions = table.take_partitions();
    if let Some(partition) = partitions.get_mut(&number) {
        partition.part_guid = PARTITION;
    }
    table.update_partitions(partitions).map_err(Error::other)?;
    table.write().map_err(Error::other)?;
    Ok(())
}

fn write_files(mut partition: StreamSlice<&mut Cursor<Vec<u8>>>, files: &[(&str, &[u8])]) -> Result<()> {
    let options = FormatVolumeOptions::new().fat_type(FatType::Fat32).volume_id(VOLUME).volume_label(*b"UNDERCROFT ");
    fatfs::format_volume(&mut partition, options)?;
    let system = FileSystem::new(partition, FsOptions::new())?;
    let root = system.root_dir();
    for folder in ["EFI", "EFI/BOOT", "undercroft"] {
        root.create_dir(folder)?;
    }
    for (name, bytes) in files {
        root.create_file(name)?.write_all(bytes)?;
    }
    drop(root);
    system.unmount()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn parts(bundle: &[u8]) -> Parts<'_> {
        Parts { loader: b"MZ loader", image: b"image", bundle, arguments: "link=framed all-off=poweroff\n" }
    }

    /// By the reader of the same crates: what a machine makes of it, EDK2 says (`tests/system/tests/uefi.rs`).
    #[test]
    fn the_files_are_where_firmware_looks() {
        let bundle: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let disk = make(&parts(&bundle)).expect("made");
        let table = GptConfig::new().open_from_device(Cursor::new(disk.clone())).expect("a table");
        let [partition] = &table.partitions().values().collect::<Vec<_>>()[..] else { panic!("one partition") };
        assert_eq!(partition.part_type_guid, partition_types::EFI);
        let [start, end] =
            [partition.bytes_start(LogicalBlockSize::Lb512), partition.bytes_len(LogicalBlockSize::Lb512)]
                .map(|offset| offset.expect("an offset"));
        let slice = StreamSlice::new(Cursor::new(disk), start, start + end).expect("inside");
        let system = FileSystem::new(slice, FsOptions::new()).expect("a file system");
        assert_eq!(system.fat_type(), FatType::Fat32);
        let read = |name: &str| {
            let mut bytes = Vec::new();
            system.root_dir().open_file(name).expect(name).read_to_end(&mut bytes).expect("read");
            bytes
        };
        assert_eq!(read(LOADER), b"MZ loader");
        assert_eq!(read(IMAGE), b"image");
        assert_eq!(read(BUNDLE), bundle);
        assert_eq!(read(ARGUMENTS), b"link=framed all-off=poweroff\n");
    }

    #[test]
    fn the_same_parts_make_the_same_disk() {
        assert!(make(&parts(b"bundle")).expect("made") == make(&parts(b"bundle")).expect("made"));
    }

    #[test]
    fn a_large_bundle_fits() {
        let bundle = vec![7; 100 << 20];
        let disk = make(&parts(&bundle)).expect("made");
        assert!(disk.len() < 120 << 20, "{}", disk.len());
    }
}
