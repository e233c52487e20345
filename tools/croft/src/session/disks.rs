//! The disks of the emulated host: files, checked before QEMU starts, and whether the VMs' parts of them are there.

use super::{Options, PortBus, StartError};
use crate::site::Site;
use crate::size;
use abi::bundle::{HostDisk, MAX_HOST_DISKS, SECTOR};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

/// A file that is a disk.
struct Disk<'a> {
    path: &'a Path,
    bytes: u64,
}

/// The serial number of disk number `number`.
fn serial(number: usize) -> String {
    format!("disk{number}")
}

/// What is wrong with a file as a disk, or how long it is.
fn length(path: &Path) -> Result<u64, String> {
    // QEMU opens it so, and says less of what is wrong.
    let file = OpenOptions::new().read(true).write(true).open(path);
    let about = match file.and_then(|file| file.metadata()) {
        Ok(about) => about,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err("there is no such file; `truncate -s 1G FILE` makes an empty one".to_owned());
        }
        Err(error) => return Err(format!("it cannot be opened for reading and writing: {error}")),
    };
    match about.len() {
        _ if !about.is_file() => Err("that is no file".to_owned()),
        0 => Err("the file is empty; a disk is a multiple of 512 bytes".to_owned()),
        bytes if !bytes.is_multiple_of(SECTOR) => Err(format!(
            "it has {bytes} bytes, {} more than a whole number of sectors; a disk is a multiple of 512 bytes",
            bytes % SECTOR
        )),
        bytes => Ok(bytes),
    }
}

/// What gives the machine its disks: those that `site` names, and those of `options` behind them.
///
/// # Errors
/// If one cannot be a disk, or the machine would lack one that a VM has a part of.
pub(super) fn arguments(site: &Site, options: &Options) -> Result<Vec<String>, StartError> {
    let mut disks = Vec::new();
    let named: &[PathBuf] = site.host.as_ref().map_or(&[], |host| &host.disks);
    for path in named {
        let wrong = |why| site.mistake(site.lines.host_disk, format!("disk = \"{}\": {why}", path.display()));
        disks.push(Disk { path, bytes: length(path).map_err(wrong)? });
    }
    for path in &options.disks {
        let bytes = length(path).map_err(|why| StartError::Disk { path: path.clone(), why })?;
        disks.push(Disk { path, bytes });
    }
    for (index, disk) in disks.iter().enumerate() {
        let is_same = |other: &Disk<'_>| match (other.path.canonicalize(), disk.path.canonicalize()) {
            (Ok(other), Ok(this)) => other == this,
            _ => false,
        };
        if disks.iter().take(index).any(is_same) {
            let why = "it is another disk of the host's already".to_owned();
            return Err(StartError::Disk { path: disk.path.to_path_buf(), why });
        }
    }
    if let Some(more) = disks.get(MAX_HOST_DISKS) {
        let why = format!("a host has at most {MAX_HOST_DISKS} disks");
        return Err(StartError::Disk { path: more.path.to_path_buf(), why });
    }
    // One whose disks come by other arguments of QEMU's is for whoever writes those to know.
    if !options.qemu_args.iter().any(|argument| argument.contains("virtio-blk")) {
        check_parts(site, &disks)?;
    }
    Ok(disks.iter().enumerate().flat_map(|(number, disk)| of_one(number, disk.path, options.disk_bus)).collect())
}

/// Whether each VM's part of a disk is there.
fn check_parts(site: &Site, disks: &[Disk<'_>]) -> Result<(), StartError> {
    for (vm, lines) in site.vms_with_lines() {
        for (disk, line) in vm.disks.iter().zip(lines.disks) {
            let Some(part) = disk.host() else { continue };
            let number = match HostDisk::named(&part.disk) {
                Some(HostDisk::Number(number)) => Some(number),
                Some(HostDisk::Serial(meant)) => (0..disks.len()).find(|&number| serial(number) == meant),
                None => None,
            };
            let wrong = |what: String| site.mistake(line, format!("host = \"{}\": {what}", part.disk));
            let Some(behind) = number.and_then(|number| disks.get(number)) else {
                let has = match disks.len() {
                    0 => "no disk; give it one with `disk` in [host], or with --disk".to_owned(),
                    count => {
                        format!("{count}: {}", (0..count).map(|n| format!("virtio{n}")).collect::<Vec<_>>().join(", "))
                    }
                };
                return Err(wrong(format!("there is no such disk; the host has {has}")).into());
            };
            if part.end(behind.bytes).is_none() {
                let (offset, bytes) = (size::show(part.offset), size::show(behind.bytes));
                let part = if part.size == 0 { String::new() } else { format!(" and has {}", size::show(part.size)) };
                let path = behind.path.display();
                return Err(wrong(format!("its part begins at {offset}{part}, and {path} has {bytes}")).into());
            }
        }
    }
    Ok(())
}

/// What gives the machine one disk. What a guest flushes is flushed to this computer's disk, and an error is the guest's to see: QEMU
/// would stop the machine at some.
fn of_one(number: usize, path: &Path, bus: PortBus) -> Vec<String> {
    // A comma in a value is written twice.
    let path = path.display().to_string().replace(',', ",,");
    let id = format!("undercroft-disk{number}");
    let drive = format!(
        "if=none,id={id},format=raw,file.driver=file,file.filename={path},cache=writeback,discard=unmap,werror=report,rerror=report"
    );
    let (device, place) = match bus {
        // By the windows' order in memory, in which the hypervisor finds them. Other devices take the last ones first.
        PortBus::Mmio => ("virtio-blk-device", format!(",bus=virtio-mmio-bus.{number}")),
        PortBus::Pci => ("virtio-blk-pci", String::new()),
    };
    let device = format!("{device},drive={id},serial={}{place}", serial(number));
    ["-global", "virtio-mmio.force-legacy=false", "-drive", &drive, "-device", &device].map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::{Options, PortBus, arguments};
    use crate::kernel::tiny_image;
    use crate::site::Site;
    use std::fs;

    const SITE: &str = "[host]\ncpu = \"max\"\ncpus = 1\nmemory = \"1G\"\n#\n[[vm]]\nname = \"a\"\nvcpus = 1\n\
                        memory = \"4M\"\nkernel = \"Image\"\n";

    /// What QEMU gets for a site with this instead of the line `#`, and this behind it; or what is said instead.
    fn made(host: &str, vm: &str, more: &[&str], bus: PortBus) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        fs::write(file("Image"), tiny_image()).unwrap();
        for (name, bytes) in [("a.img", 1 << 20), ("b,c.img", 1024), ("odd.img", 1000), ("empty.img", 0)] {
            fs::File::create(file(name)).unwrap().set_len(bytes).unwrap();
        }
        fs::write(file("site.toml"), SITE.replace('#', host) + vm).unwrap();
        let site = Site::load(&file("site.toml")).map_err(|error| error.to_string())?;
        let disks = more.iter().map(|name| file(name)).collect();
        let options = Options { disks, disk_bus: bus, ..Options::default() };
        let here = format!("{}/", folder.path().display());
        let hidden = |text: String| text.replace(&here, "");
        arguments(&site, &options).map(|made| hidden(made.join(" "))).map_err(|error| hidden(error.to_string()))
    }

    #[test]
    fn files_become_disks_in_their_order() {
        assert_eq!(made("", "", &[], PortBus::Mmio), Ok(String::new()));
        let vm = "disk = [{ host = \"virtio1\" }, { host = \"serial:disk0\", offset = 512, size = \"512K\" }]";
        let both = made("disk = \"a.img\"", vm, &["b,c.img"], PortBus::Mmio).unwrap();
        for part in [
            "-global virtio-mmio.force-legacy=false",
            "id=undercroft-disk0,format=raw,file.driver=file,file.filename=a.img,cache=writeback",
            "-device virtio-blk-device,drive=undercroft-disk0,serial=disk0,bus=virtio-mmio-bus.0 ",
            "file.filename=b,,c.img,",
            "-device virtio-blk-device,drive=undercroft-disk1,serial=disk1,bus=virtio-mmio-bus.1",
        ] {
            assert!(both.contains(part), "{part}: {both}");
        }
        let pci = made("disk = [\"a.img\", \"b,c.img\"]", vm, &[], PortBus::Pci).unwrap();
        assert!(pci.ends_with("-device virtio-blk-pci,drive=undercroft-disk1,serial=disk1"), "{pci}");
    }

    #[test]
    fn what_is_no_disk_is_said_with_its_line() {
        let wrong = |host: &str, vm: &str, more: &[&str]| made(host, vm, more, PortBus::Mmio).unwrap_err();
        for (host, said) in [
            ("disk = \"none.img\"", "site.toml:5: disk = \"none.img\": there is no such file; `truncate -s 1G FILE`"),
            ("disk = \"odd.img\"", "site.toml:5: disk = \"odd.img\": it has 1000 bytes, 488 more than a whole number"),
            ("disk = \"empty.img\"", "site.toml:5: disk = \"empty.img\": the file is empty; a disk is a multiple"),
            ("disk = \".\"", "cannot be opened"),
        ] {
            let found = wrong(host, "", &[]);
            assert!(found.contains(said), "{found}");
        }
        assert!(wrong("", "", &["odd.img"]).starts_with("odd.img: it has 1000 bytes"));
        assert_eq!(wrong("disk = \"a.img\"", "", &["./a.img"]), "./a.img: it is another disk of the host's already");
        for (vm, said) in [
            ("disk = { host = \"virtio1\" }", "11: host = \"virtio1\": there is no such disk; the host has 1: virtio0"),
            ("disk = { host = \"serial:x\" }", "11: host = \"serial:x\": there is no such disk"),
            (
                "disk = { host = \"virtio0\", offset = \"1M\" }",
                "11: host = \"virtio0\": its part begins at 1M, and a.img has 1M",
            ),
            (
                "disk = { host = \"virtio0\", offset = \"512K\", size = \"1M\" }",
                "11: host = \"virtio0\": its part begins at 512K and has 1M, and a.img has 1M",
            ),
        ] {
            let found = wrong("disk = \"a.img\"", vm, &[]);
            assert!(found.contains(said), "{found}");
        }
        let none = wrong("", "disk = { host = \"virtio0\" }", &[]);
        assert!(none.contains("the host has no disk; give it one with `disk` in [host], or with --disk"), "{none}");
    }
}
