//! From a site to the bytes of its bundle: every file read, unpacked, checked, and tried in its VM's memory.

use crate::kernel;
use crate::site::{Site, SiteError, Vm};
use crate::size;
use abi::bundle::{self, BundleError, VmSource};
use machine::image::ImageHeader;
use machine::placement::Placement;
use machine::{MachinePlan, Spec};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How the bundle names its maker.
const MADE_BY: &str = concat!("croft ", env!("CARGO_PKG_VERSION"));

/// A kernel file after unpacking.
type Kernel = (Vec<u8>, ImageHeader);

/// Files by path; many VMs often share one.
#[derive(Default)]
struct Files {
    kernels: HashMap<PathBuf, Arc<Kernel>>,
    others: HashMap<PathBuf, Arc<Vec<u8>>>,
}

/// A VM's files.
struct Loaded {
    kernel: Arc<Kernel>,
    initrd: Option<Arc<Vec<u8>>>,
}

fn read(site: &Site, key: &str, path: &Path, line: usize) -> Result<Vec<u8>, SiteError> {
    let bytes = std::fs::read(path);
    bytes.map_err(|error| site.mistake(line, format!("{key} = \"{}\": it cannot be read: {error}", path.display())))
}

impl Files {
    fn kernel(&mut self, site: &Site, vm: &Vm) -> Result<Arc<Kernel>, SiteError> {
        if let Some(kernel) = self.kernels.get(&vm.kernel) {
            return Ok(Arc::clone(kernel));
        }
        let file = read(site, "kernel", &vm.kernel, vm.lines.kernel)?;
        let kernel = kernel::unpack(file)
            .map_err(|error| site.mistake(vm.lines.kernel, format!("kernel = \"{}\": {error}", vm.kernel.display())))?;
        let kernel = Arc::new(kernel);
        self.kernels.insert(vm.kernel.clone(), Arc::clone(&kernel));
        Ok(kernel)
    }

    fn initrd(&mut self, site: &Site, vm: &Vm) -> Result<Option<Arc<Vec<u8>>>, SiteError> {
        let Some(path) = &vm.initrd else { return Ok(None) };
        if let Some(bytes) = self.others.get(path) {
            return Ok(Some(Arc::clone(bytes)));
        }
        let bytes = Arc::new(read(site, "initrd", path, vm.lines.initrd)?);
        if bytes.is_empty() {
            let message = format!("initrd = \"{}\": the file is empty; leave the key out instead", path.display());
            return Err(site.mistake(vm.lines.initrd, message));
        }
        self.others.insert(path.clone(), Arc::clone(&bytes));
        Ok(Some(bytes))
    }
}

/// Whether kernel, device tree and initrd find their places in the VM's memory, by the hypervisor's own rules.
fn check_placement(site: &Site, vm: &Vm, loaded: &Loaded) -> Result<(), SiteError> {
    let spec = Spec {
        watchdog: vm.doors.generic_watchdog,
        name: &vm.name,
        vcpus: vm.vcpus,
        memory_bytes: vm.memory,
        ipa_bits: 40,
        virtio: &[],
        counter_frequency: units::Hz(1_000_000_000),
    };
    let wrong = |what: String| site.mistake(vm.lines.memory, format!("memory = \"{}\": {what}", size::show(vm.memory)));
    let plan = MachinePlan::new(spec).map_err(|error| wrong(error.to_string()))?;
    let (image, header) = &*loaded.kernel;
    let initrd_bytes = loaded.initrd.as_ref().map_or(0, |bytes| bytes.len() as u64);
    let placed = Placement::of_image(&plan, header, image.len() as u64, initrd_bytes);
    placed.map(drop).map_err(|error| wrong(format!("{error}; give the VM more")))
}

/// The bundle of `site`.
///
/// # Errors
/// What is wrong with the site or a file of it.
pub fn make(site: &Site) -> Result<Vec<u8>, SiteError> {
    let mut files = Files::default();
    let mut loaded = Vec::with_capacity(site.vms.len());
    for vm in &site.vms {
        let own = Loaded { kernel: files.kernel(site, vm)?, initrd: files.initrd(site, vm)? };
        check_placement(site, vm, &own)?;
        loaded.push(own);
    }
    let sources: Vec<VmSource<'_>> = site
        .vms
        .iter()
        .zip(&loaded)
        .map(|(vm, own)| VmSource {
            name: &vm.name,
            vcpus: vm.vcpus,
            memory: vm.memory,
            kernel: &own.kernel.0,
            initrd: own.initrd.as_ref().map(|bytes| bytes.as_slice()),
            cmdline: &vm.cmdline,
            weight: vm.weight,
            affinity: vm.affinity,
            doors: vm.doors,
        })
        .collect();
    let bytes = bundle::write(MADE_BY, &sources).map_err(|error| {
        // A site from a file was checked before; this is one made by a program.
        let vm = if let BundleError::Vm { index, .. } = error { site.vms.get(usize::from(index)) } else { None };
        let name = vm.map_or(String::new(), |vm| format!("{}: ", vm.name));
        site.mistake(vm.map_or(0, |vm| vm.lines.table), format!("{name}{error}"))
    })?;
    site.check_memory(bytes.len() as u64)?;
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
        let folder = tempfile::tempdir().unwrap();
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
        let large = said(SITE, &tiny_image(), &vec![1; 5 << 20]);
        assert!(large.contains("site.toml:4: memory = \"4M\"") && large.contains("give the VM more"), "{large}");
        let host = format!("[host]\ncpu = \"max\"\ncpus = 1\nmemory = \"256M\"\n{}", SITE.replace("4M", "90M"));
        let crowded = said(&host, &tiny_image(), &vec![1; 20 << 20]);
        assert!(crowded.contains("site.toml:4: memory = \"256M\": the VMs do not fit"), "{crowded}");
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
