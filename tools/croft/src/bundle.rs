//! From a site to the bytes of its bundle: every file read, unpacked, checked, and tried in its VM's memory.

use crate::kernel::{self, Kernel, MAX_UNPACKED, Raw};
use crate::output::read_at_most;
use crate::site::{Site, SiteError, Vm, VmLines};
use crate::size;
use ::vm::GuestCounter;
use abi::bundle::{self, BundleError, VmSource};
use machine::image::PageSize;
use machine::placement::{Placement, Segment};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use units::Ipa;

/// How the bundle names its maker.
const MADE_BY: &str = concat!("croft ", env!("CARGO_PKG_VERSION"));

/// Files by path; many VMs often share one.
#[derive(Default)]
struct Files {
    kernels: HashMap<(PathBuf, Option<Raw>), Arc<Kernel>>,
    others: HashMap<PathBuf, Arc<Vec<u8>>>,
}

/// A VM's files.
struct Loaded {
    kernel: Arc<Kernel>,
    initrd: Option<Arc<Vec<u8>>>,
    /// Those of its disks, in their order.
    images: Vec<Arc<Vec<u8>>>,
}

/// Reads a file of at most `most` bytes, which are `whose`.
fn read(site: &Site, key: &str, path: &Path, line: usize, most: u64, whose: &str) -> Result<Vec<u8>, SiteError> {
    let wrong = |what: String| site.mistake(line, format!("{key} = \"{}\": {what}", path.display()));
    match read_at_most(path, most) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(wrong(format!("it is larger than {}, {whose}", size::show(most)))),
        Err(error) => Err(wrong(format!("it cannot be read: {error}"))),
    }
}

impl Files {
    fn kernel(&mut self, site: &Site, vm: &Vm, lines: VmLines) -> Result<Arc<Kernel>, SiteError> {
        let key = (vm.kernel.clone(), vm.program);
        if let Some(kernel) = self.kernels.get(&key) {
            return Ok(Arc::clone(kernel));
        }
        let file = read(site, "kernel", &vm.kernel, lines.kernel, MAX_UNPACKED, "the most that a kernel may have")?;
        let kernel = kernel::read(file, vm.program)
            .map_err(|error| site.mistake(lines.kernel, format!("kernel = \"{}\": {error}", vm.kernel.display())))?;
        let kernel = Arc::new(kernel);
        self.kernels.insert(key, Arc::clone(&kernel));
        Ok(kernel)
    }

    fn initrd(&mut self, site: &Site, vm: &Vm, lines: VmLines) -> Result<Option<Arc<Vec<u8>>>, SiteError> {
        let Some(path) = &vm.initrd else { return Ok(None) };
        if let Some(bytes) = self.others.get(path) {
            return Ok(Some(Arc::clone(bytes)));
        }
        let bytes = Arc::new(read(site, "initrd", path, lines.initrd, vm.memory, "the VM's memory")?);
        if bytes.is_empty() {
            let message = format!("initrd = \"{}\": the file is empty; leave the key out instead", path.display());
            return Err(site.mistake(lines.initrd, message));
        }
        self.others.insert(path.clone(), Arc::clone(&bytes));
        Ok(Some(bytes))
    }
}

/// How files begin that hold a disk in another form than a guest sees it.
const CONTAINERS: [(&[u8], &str); 4] =
    [(b"QFI\xfb", "qcow2"), (b"vhdxfile", "VHDX"), (b"KDMV", "VMDK"), (b"# Disk DescriptorFile", "VMDK")];

/// The images of a VM's disks.
fn images(files: &mut Files, site: &Site, vm: &Vm, lines: VmLines) -> Result<Vec<Arc<Vec<u8>>>, SiteError> {
    let most = *bundle::IMAGE.end();
    let image = |(path, changes, line): (&PathBuf, u64, usize)| {
        let bytes = match files.others.get(path) {
            Some(bytes) => Arc::clone(bytes),
            None => Arc::new(read(site, "image", path, line, most, "the most that an image may have")?),
        };
        bundle::check_image(bytes.len() as u64).map_err(|_| {
            let what = match bytes.len() as u64 {
                0 => "the file is empty".to_owned(),
                length => {
                    format!("it has {length} bytes, {} more than a whole number of sectors", length % bundle::SECTOR)
                }
            };
            let message = format!("image = \"{}\": {what}; a disk is a multiple of 512 bytes", path.display());
            site.mistake(line, message)
        })?;
        bundle::check_changes(changes, bytes.len() as u64).map_err(|_| {
            let (changes, list) = (size::show(changes), size::show(bundle::list_of_changes(bytes.len() as u64)));
            let message = format!(
                "image = \"{}\": changes = \"{changes}\" leaves nothing for what is written, as the list for so large an image takes {list}",
                path.display()
            );
            site.mistake(line, message)
        })?;
        if let Some((_, what)) = CONTAINERS.iter().find(|(magic, _)| bytes.starts_with(magic)) {
            let message = format!(
                "image = \"{}\": it is a disk in the format {what}, and a guest would find the file as it is; make it raw: qemu-img convert -O raw",
                path.display()
            );
            return Err(site.mistake(line, message));
        }
        files.others.insert(path.clone(), Arc::clone(&bytes));
        Ok(bytes)
    };
    let with_images = vm.disks.iter().zip(lines.disks);
    with_images.filter_map(|(disk, line)| Some((disk.image()?, disk.changes(), line))).map(image).collect()
}

/// The most bytes of a bundle that QEMU takes: it is the initial ramdisk of the machine, whose size QEMU has as a number of 31 bits.
const MOST_FOR_QEMU: u64 = i32::MAX as u64;

/// Whether an emulated host takes all images, each file once: by the files' lengths, before gigabytes are read for nothing.
fn check_images_together(site: &Site) -> Result<(), SiteError> {
    let (mut seen, mut sum) = (HashSet::new(), 0_u64);
    for (vm, lines) in site.vms_with_lines() {
        for (disk, line) in vm.disks.iter().zip(lines.disks) {
            let Some(image) = disk.image() else { continue };
            // What is wrong with one that cannot be read is said where it is read.
            let length = std::fs::metadata(image).map_or(0, |file| file.len());
            sum += if seen.insert(image) { length } else { 0 };
            check_length(site, line, &format!("image = \"{}\": with it all images have", image.display()), sum)?;
        }
    }
    if sum == 0 { Ok(()) } else { site.check_memory(sum) }
}

/// Whether an emulated host takes so many bytes.
fn check_length(site: &Site, line: usize, what: &str, bytes: u64) -> Result<(), SiteError> {
    if site.host.is_none() || bytes <= MOST_FOR_QEMU {
        return Ok(());
    }
    let bytes = size::show(bytes);
    let message = format!(
        "{what} {bytes}; a bundle has them all, and QEMU takes one of less than 2G: make them smaller, or leave [host] out for real hardware"
    );
    Err(site.mistake(line, message))
}

/// A kernel in place of the initrd of a kernel that is an `Image`; what other programs are given there is their business.
fn check_initrd(site: &Site, vm: &Vm, lines: VmLines, loaded: &Loaded) -> Result<(), SiteError> {
    let (Kernel::Image { .. }, Some(path), Some(bytes)) = (&*loaded.kernel, &vm.initrd, &loaded.initrd) else {
        return Ok(());
    };
    let Some(what) = kernel::in_place_of_initrd(bytes) else { return Ok(()) };
    let path = path.display();
    let is_kernel = what.contains("kernel") || what.contains("ELF");
    let confused = if is_kernel { "; are `kernel` and `initrd` confused?" } else { "" };
    let message = format!("initrd = \"{path}\": it is {what}, not an initial ramdisk{confused}");
    Err(site.mistake(lines.initrd, message))
}

/// QEMU's CPU models that have no pages of 16 KiB (ID_AA64MMFR0_EL1.TGran16).
const WITHOUT_16K: [&str; 4] = ["a64fx", "cortex-a53", "cortex-a57", "cortex-a72"];

/// A kernel for pages that the emulated CPU does not have.
fn check_pages(site: &Site, vm: &Vm, lines: VmLines, kernel: &Kernel) -> Result<(), SiteError> {
    let cpu = site.host.as_ref().and_then(|host| host.cpu.split(',').next()).unwrap_or_default();
    match kernel {
        Kernel::Image { header, .. } if header.page_size == PageSize::Kib16 && WITHOUT_16K.contains(&cpu) => {
            let path = vm.kernel.display();
            let message = format!(
                "kernel = \"{path}\": it is built for pages of 16 KiB, which the CPU {cpu} does not have; take another kernel or CPU"
            );
            Err(site.mistake(lines.kernel, message))
        }
        _ => Ok(()),
    }
}

/// Whether kernel, device tree and initrd find their places in the VM's memory, by the hypervisor's own rules.
fn check_placement(site: &Site, vm: &Vm, lines: VmLines, loaded: &Loaded) -> Result<(), SiteError> {
    let wrong = |what: String| site.mistake(lines.memory, format!("memory = \"{}\": {what}", size::show(vm.memory)));
    let plan = ::vm::machine(vm, GuestCounter::USUAL).map_err(|error| wrong(error.to_string()))?;
    let initrd_bytes = loaded.initrd.as_ref().map_or(0, |bytes| bytes.len() as u64);
    match &*loaded.kernel {
        Kernel::Image { bytes, header } => {
            let placed = Placement::of_image(&plan, header, bytes.len() as u64, initrd_bytes);
            placed.map(drop).map_err(|error| wrong(format!("{error}; give the VM more")))
        }
        Kernel::Program { program, .. } => {
            let segments: Vec<Segment> = program
                .pieces()
                .map(|(one, _)| Segment {
                    range: units::Range { start: Ipa(one.address), size: one.size },
                    file_bytes: one.file_bytes,
                })
                .collect();
            let placed = Placement::of_program(&plan, &segments, Ipa(program.entry), initrd_bytes);
            let path = vm.kernel.display();
            placed.map(drop).map_err(|error| site.mistake(lines.kernel, format!("kernel = \"{path}\": {error}")))
        }
    }
}

/// The bundle of `site`.
///
/// # Errors
/// What is wrong with the site or a file of it.
pub fn make(site: &Site) -> Result<Vec<u8>, SiteError> {
    check_images_together(site)?;
    let mut files = Files::default();
    let mut loaded = Vec::with_capacity(site.vms.len());
    for (vm, lines) in site.vms_with_lines() {
        let own = Loaded {
            kernel: files.kernel(site, vm, lines)?,
            initrd: files.initrd(site, vm, lines)?,
            images: images(&mut files, site, vm, lines)?,
        };
        check_initrd(site, vm, lines, &own)?;
        check_pages(site, vm, lines, &own.kernel)?;
        check_placement(site, vm, lines, &own)?;
        loaded.push(own);
    }
    let sources: Vec<VmSource<'_>> = site
        .vms
        .iter()
        .zip(&loaded)
        .map(|(vm, Loaded { kernel, initrd, images })| {
            let initrd = initrd.as_ref().map(|bytes| bytes.as_slice());
            let mut images = images.iter();
            let disks = vm.disks.with(String::as_str, |_| images.next().map_or(&[][..], |bytes| bytes.as_slice()));
            vm.with(String::as_str, kernel.bytes(), kernel.program(), initrd, disks)
        })
        .collect();
    let bytes = bundle::write(MADE_BY, &sources).map_err(|error| {
        // A site from a file was checked before; this is one made by a program.
        let found = if let BundleError::Vm { index, .. } = error {
            site.vms_with_lines().nth(usize::from(index))
        } else {
            None
        };
        let (name, line) = found.map_or((String::new(), 0), |(vm, lines)| (format!("{}: ", vm.name), lines.table));
        site.mistake(line, format!("{name}{error}"))
    })?;
    let length = bytes.len() as u64;
    site.check_memory(length)?;
    check_length(site, 0, "all files of the VMs have", length)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::make;
    use crate::kernel::tiny_image;
    use crate::site::Site;
    use abi::{bundle::Bundle, crc32c};
    use std::path::Path;

    const SITE: &str = "[[vm]]\nname = \"a\"\nvcpus = 1\nmemory = \"4M\"\nkernel = \"Image\"\ninitrd = \"initrd\"\n\
                        [[vm]]\nname = \"b\"\nvcpus = 1\nmemory = \"4M\"\nkernel = \"Image\"\n";

    fn folder(text: &str, kernel: &[u8], initrd: &[u8]) -> (tempfile::TempDir, Site) {
        in_folder(tempfile::tempdir().unwrap(), text, kernel, initrd)
    }

    /// As well, with images of so many bytes.
    fn folder_with(text: &str, images: &[(&str, usize)]) -> (tempfile::TempDir, Site) {
        let folder = tempfile::tempdir().unwrap();
        for &(name, length) in images {
            std::fs::write(folder.path().join(name), vec![0xd5; length]).unwrap();
        }
        in_folder(folder, text, &tiny_image(), b"ramdisk")
    }

    fn in_folder(folder: tempfile::TempDir, text: &str, kernel: &[u8], initrd: &[u8]) -> (tempfile::TempDir, Site) {
        std::fs::write(folder.path().join("Image"), kernel).unwrap();
        std::fs::write(folder.path().join("initrd"), initrd).unwrap();
        std::fs::write(folder.path().join("site.toml"), text).unwrap();
        let site = Site::load(&folder.path().join("site.toml")).unwrap();
        (folder, site)
    }

    #[test]
    fn a_site_becomes_a_bundle_that_the_hypervisor_reads() {
        let (_folder, site) = folder(SITE, &tiny_image(), b"ramdisk");
        let bytes = make(&site).unwrap();
        let bundle = Bundle::parse(&bytes, crc32c::compute).unwrap();
        let names: Vec<&str> = bundle.vms().map(|vm| vm.name).collect();
        assert_eq!(names, ["a", "b"]);
        let a = bundle.vms().next().unwrap();
        assert_eq!(bundle.verify(&a.kernel).unwrap(), tiny_image());
        assert_eq!(bundle.verify(&a.initrd.unwrap()).unwrap(), b"ramdisk");
    }

    #[test]
    fn files_that_do_not_do_are_told_with_their_line() {
        let said =
            |text: &str, kernel: &[u8], initrd: &[u8]| make(&folder(text, kernel, initrd).1).unwrap_err().to_string();
        let no_image = said(SITE, &[0; 5000], b"x");
        assert!(no_image.contains("site.toml:5: kernel = ") && no_image.contains("no arm64 Image"), "{no_image}");
        let empty = said(SITE, &tiny_image(), b"");
        assert!(empty.contains("site.toml:6: initrd = ") && empty.contains("leave the key out"), "{empty}");
        let kernel = said(SITE, &tiny_image(), &tiny_image());
        assert!(kernel.contains("site.toml:6: initrd = ") && kernel.contains("it is an arm64 kernel"), "{kernel}");
        let swapped = said(SITE, b"070701...", &tiny_image());
        assert!(swapped.contains("site.toml:5: kernel = ") && swapped.contains("confused?"), "{swapped}");
        let large = said(SITE, &tiny_image(), &vec![1; 4 << 20]);
        assert!(large.contains("site.toml:4: memory = \"4M\"") && large.contains("give the VM more"), "{large}");
        let host = format!("[host]\ncpu = \"max\"\ncpus = 1\nmemory = \"256M\"\n{}", SITE.replace("4M", "110M"));
        let crowded = said(&host, &tiny_image(), &vec![1; 20 << 20]);
        assert!(crowded.contains("site.toml:4: memory = \"256M\": the VMs do not fit"), "{crowded}");
    }

    #[test]
    fn an_image_is_in_the_bundle_once_and_a_wrong_one_is_told_with_its_line() {
        let disk = "disk = [{ image = \"one.img\" }, { image = \"other.img\", serial = \"other\" }]\n";
        let text = format!("{}{disk}", SITE.replace("[[vm]]\nname = \"b\"", &format!("{disk}[[vm]]\nname = \"b\"")));
        let (folder, site) = folder_with(&text, &[("one.img", 4096), ("other.img", 512)]);
        let bytes = make(&site).unwrap();
        let bundle = Bundle::parse(&bytes, crc32c::compute).unwrap();
        let vms: Vec<_> = bundle.vms().collect();
        let found: Vec<_> = vms[0].disks.iter().map(|disk| (disk.serial, disk.image().unwrap().length)).collect();
        assert_eq!(found, [("disk0", 4096), ("other", 512)]);
        assert_eq!(vms[0].disks, vms[1].disks, "what both have is there once");
        assert!(
            vms[0].disks.iter().all(|disk| bundle
                .verify(disk.image().unwrap())
                .unwrap()
                .iter()
                .all(|&byte| byte == 0xd5))
        );
        let place = folder.path().join("one.img");
        for (bytes, what) in [
            (0, "the file is empty; a disk is a multiple of 512 bytes"),
            (511, "it has 511 bytes, 511 more than a whole number of sectors"),
            (1000, "it has 1000 bytes, 488 more than a whole number of sectors"),
            ((4 << 30) + 512, "it is larger than 4G, the most that an image may have"),
        ] {
            std::fs::File::create(&place).unwrap().set_len(bytes).unwrap();
            let said = make(&site).unwrap_err().to_string();
            assert!(
                said.contains("site.toml:7: image = ") && said.contains(what) && said.lines().count() == 1,
                "{said}"
            );
        }
        // A disk in another form than a guest would see it.
        std::fs::write(&place, [&b"QFI\xfb"[..], &[0; 1020]].concat()).unwrap();
        let said = make(&site).unwrap_err().to_string();
        assert!(
            said.contains("it is a disk in the format qcow2") && said.contains("qemu-img convert -O raw"),
            "{said}"
        );
        std::fs::remove_file(&place).unwrap();
        let load = || Site::load(&folder.path().join("site.toml")).unwrap_err().to_string();
        assert!(load().contains("site.toml:7: image = ") && load().contains("there is no such file"), "{}", load());
        std::fs::create_dir(&place).unwrap();
        assert!(load().contains("that is no file") && load().lines().count() == 2, "{}", load());
    }

    /// Each may have its 4 GiB, and the bundle that has them all is what has to fit: said before anything of them is read, and of a file that
    /// two VMs have once.
    #[test]
    fn images_that_are_too_large_together_are_told_with_their_sum() {
        let host = "[host]\ncpu = \"max\"\ncpus = 1\nmemory = \"64G\"\n";
        let disk = "disk = [{ image = \"one.img\" }, { image = \"other.img\" }]\n";
        let text =
            format!("{host}{}{disk}", SITE.replace("[[vm]]\nname = \"b\"", &format!("{disk}[[vm]]\nname = \"b\"")));
        let (folder, mut site) = folder_with(&text, &[("one.img", 512), ("other.img", 512)]);
        let grow = |name: &str, bytes| std::fs::File::create(folder.path().join(name)).unwrap().set_len(bytes).unwrap();
        grow("one.img", 3 << 29);
        grow("other.img", 3 << 28);
        let said = make(&site).unwrap_err().to_string();
        assert!(said.contains("site.toml:11: image = ") && said.contains("all images have 2304M; "), "{said}");
        assert!(said.contains("QEMU takes one of less than 2G") && said.lines().count() == 1, "{said}");
        grow("one.img", 3 << 20);
        grow("other.img", 5 << 20);
        assert!(make(&site).is_ok(), "what both have counts once");
        // The host's memory is what they do not fit in. None of it was read: it is no whole number of sectors.
        grow("one.img", (300 << 20) + 1);
        site.host.as_mut().unwrap().memory = 256 << 20;
        let said = make(&site).unwrap_err().to_string();
        assert!(said.contains("the VMs do not fit") && said.contains(" 308 for their files"), "{said}");
    }

    #[test]
    fn a_raw_binary_goes_where_the_site_says() {
        let site = |keys: &str| SITE.replace("initrd = \"initrd\"\n", keys);
        let made = |keys: &str| make(&folder(&site(keys), &tiny_image(), b"x").1).map_err(|error| error.to_string());
        let bytes = made("load = \"0x4020_0000\"\nentry = \"0x40200040\"\n").unwrap();
        let bundle = Bundle::parse(&bytes, crc32c::compute).unwrap();
        let vms: Vec<_> = bundle.vms().collect();
        let program = vms[0].program.unwrap();
        assert_eq!((program.entry, program.segments[0].address), (0x4020_0040, 0x4020_0000));
        assert_eq!(vms[1].program, None, "the same file, an Image where nothing else is said");
        let low = made("load = \"0x80000\"\n").unwrap_err();
        assert!(
            low.contains("site.toml:5: kernel = ") && low.contains("at 0x80000 is not inside the VM's RAM"),
            "{low}"
        );
        let entry = made("load = \"0x40200000\"\nentry = \"0x40300000\"\n").unwrap_err();
        assert!(entry.contains("the entry 0x40300000 is in no segment"), "{entry}");
    }

    #[test]
    fn pages_that_the_emulated_cpu_lacks_are_told() {
        let mut image = tiny_image();
        image[24] = 0b1100;
        let host = |cpu: &str| format!("[host]\ncpu = \"{cpu}\"\ncpus = 1\nmemory = \"256M\"\n{SITE}");
        let said = make(&folder(&host("cortex-a72,pmu=off"), &image, b"x").1).unwrap_err().to_string();
        assert!(
            said.contains("site.toml:9: kernel = ") && said.contains("pages of 16 KiB, which the CPU cortex-a72"),
            "{said}"
        );
        let said = make(&folder(&host("a64fx"), &image, b"x").1).unwrap_err().to_string();
        assert!(said.contains("pages of 16 KiB, which the CPU a64fx"), "{said}");
        assert!(make(&folder(&host("cortex-a76"), &image, b"x").1).is_ok());
    }

    #[test]
    fn a_site_made_by_a_program_is_checked_too() {
        let (folder, mut site) = folder(SITE, &tiny_image(), b"x");
        site.vms[1].name = "a".to_owned();
        let said = make(&site).unwrap_err().to_string();
        assert!(said.contains("a: VM 1 of the bundle: another VM has the same name"), "{said}");
        assert!(Path::new(&folder.path().join("Image")).is_file());
    }
}
