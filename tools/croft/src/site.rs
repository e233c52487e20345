//! The site file: which VMs there are, and the machine that `croft run` emulates for them.
//!
//! People write it by hand, so every mistake is reported with file and line, what is wrong, and what would be right;
//! all mistakes at once, since it is tedious to fix one each run. The file is read by hand, not through serde, because
//! that keeps the position of every key and value, and makes an unknown key an error with a suggestion.

mod clock;
mod keys;
mod page;
mod reader;
#[cfg(test)]
mod tests;
mod texts;

pub use abi::bundle::{Backend, Disk, Disks, HostPart, Port, Ports};
pub use page::page;

use crate::kernel::Raw;
use crate::{output, printable};
use abi::bundle;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use vm::{Needs, Share};

/// A site file with 64 VMs that say everything has a quarter of this.
const MAX_FILE: u64 = 1 << 20;
/// The most CPUs that the emulated host may have.
pub const MAX_HOST_CPUS: u8 = 8;

/// A site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The file, as messages name it.
    pub file: PathBuf,
    /// The machine to emulate; `None` for a site that is only meant for real hardware.
    pub host: Option<Host>,
    /// The VMs, in the order of the file; their numbers on the link count from 0 in this order.
    pub vms: Vec<Vm>,
    /// Where the file says so; nothing for a site made by a program.
    pub lines: Lines,
}

/// The machine that `croft run` emulates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// QEMU's name of the CPU model, possibly with options.
    pub cpu: String,
    /// How many CPUs, 1 to [`MAX_HOST_CPUS`].
    pub cpus: u8,
    /// RAM in bytes, whole MiB.
    pub memory: u64,
    /// The files that are its disks, in their order.
    pub disks: Vec<PathBuf>,
}

/// One VM: its files by their paths, which need not be those of `Image`s.
pub type Vm = bundle::Vm<String, PathBuf, Raw>;

/// The lines of the values that may turn out wrong only later; 0 where there is no file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    /// `memory` of the host.
    host_memory: usize,
    /// Its `disk`.
    pub(crate) host_disk: usize,
    /// Those of the VMs, in their order.
    vms: Vec<VmLines>,
}

/// The lines of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct VmLines {
    /// The table's own line.
    pub(crate) table: usize,
    /// `memory`.
    pub(crate) memory: usize,
    /// `kernel`.
    pub(crate) kernel: usize,
    /// `initrd`.
    pub(crate) initrd: usize,
    /// `image` or `host` of each disk.
    pub(crate) disks: [usize; bundle::MAX_DISKS],
}

/// The text of a site file.
fn read(file: &Path) -> Result<String, String> {
    let wrong = |error: std::io::Error| {
        let mut whole = file.as_os_str().to_owned();
        whole.push(".toml");
        match error.kind() {
            ErrorKind::NotFound if Path::new(&whole).is_file() => {
                format!("cannot be read: there is no such file; did you mean {}?", whole.display())
            }
            ErrorKind::NotFound => "cannot be read: there is no such file".to_owned(),
            _ => format!("cannot be read: {error}"),
        }
    };
    if std::fs::metadata(file).map_err(wrong)?.is_dir() {
        return Err("that is a folder; name the site file in it".to_owned());
    }
    let bytes = output::read_at_most(file, MAX_FILE).map_err(wrong)?;
    let bytes = bytes.ok_or_else(|| format!("is no site file: it is larger than {}", crate::size::show(MAX_FILE)))?;
    String::from_utf8(bytes).map_err(|_| "is no site file: it is not text in UTF-8".to_owned())
}

/// One mistake in a site file, or in a file that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The site file.
    pub file: PathBuf,
    /// The line, from 1; 0 if it concerns the file as a whole.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:", printable::line(&self.file.display().to_string()))?;
        if self.line > 0 {
            write!(out, "{}:", self.line)?;
        }
        // It quotes the file, in which there may be anything.
        write!(out, " {}", printable::line(&self.message))
    }
}

/// All mistakes that were found, one a line; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct SiteError(pub Vec<Mistake>);

impl fmt::Display for SiteError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            write!(out, "{}{mistake}", if index == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl Site {
    /// A site made by a program; `file` only names it in messages.
    #[must_use]
    pub fn new(file: impl Into<PathBuf>, host: Host, vms: Vec<Vm>) -> Self {
        Self { file: file.into(), host: Some(host), vms, lines: Lines::default() }
    }

    /// Reads a site file. Paths in it are relative to its folder; whether their files are there is part of the check.
    ///
    /// # Errors
    /// All mistakes.
    pub fn load(file: &Path) -> Result<Self, SiteError> {
        let site = Self::read(file)?;
        let missing: Vec<Mistake> =
            site.vms_with_lines().flat_map(|(vm, lines)| site.missing_files(vm, lines)).collect();
        if missing.is_empty() { Ok(site) } else { Err(SiteError(missing)) }
    }

    /// Reads a site file without looking at the files that it names.
    ///
    /// # Errors
    /// All mistakes.
    pub fn read(file: &Path) -> Result<Self, SiteError> {
        let text =
            read(file).map_err(|message| SiteError(vec![Mistake { file: file.to_path_buf(), line: 0, message }]))?;
        Self::parse(&text, file)
    }

    /// Reads the text of a site file without looking at the files that it names.
    ///
    /// # Errors
    /// All mistakes.
    pub fn parse(text: &str, file: &Path) -> Result<Self, SiteError> {
        reader::read(text, file)
    }

    /// The VMs, each with where the file says so.
    pub(crate) fn vms_with_lines(&self) -> impl Iterator<Item = (&Vm, VmLines)> {
        let lines = self.lines.vms.iter().copied().chain(std::iter::repeat(VmLines::default()));
        self.vms.iter().zip(lines)
    }

    /// A mistake in this site.
    pub(crate) fn mistake(&self, line: usize, message: impl Into<String>) -> SiteError {
        SiteError(vec![Mistake { file: self.file.clone(), line, message: message.into() }])
    }

    /// What `vm` names that is no file.
    fn missing_files(&self, vm: &Vm, lines: VmLines) -> Vec<Mistake> {
        let named = [("kernel", Some(&vm.kernel), lines.kernel), ("initrd", vm.initrd.as_ref(), lines.initrd)];
        let images = vm.disks.iter().zip(lines.disks).map(|(disk, line)| ("image", disk.image(), line));
        let mut mistakes = Vec::new();
        for (key, path, line) in named.into_iter().chain(images) {
            let Some(path) = path else { continue };
            let wrong = match std::fs::metadata(path) {
                Ok(metadata) if metadata.is_file() => continue,
                Ok(_) => "that is no file".to_owned(),
                Err(error) if error.kind() == ErrorKind::NotFound => "there is no such file".to_owned(),
                Err(error) => format!("it cannot be read: {error}"),
            };
            let message =
                format!("{key} = \"{}\": {wrong}; paths are relative to the folder of the site file", path.display());
            mistakes.push(Mistake { file: self.file.clone(), line, message });
        }
        mistakes
    }

    /// The VMs whose guests may read a wrong clock on the emulated host, by name, and what is to be said of each.
    pub fn wrong_clocks(&self) -> impl Iterator<Item = (&str, String)> {
        let host = self.host.as_ref();
        self.vms.iter().filter_map(move |vm| Some((&*vm.name, clock::wrong_clock(host?, vm)?)))
    }

    /// The number of the VM with this name.
    #[must_use]
    pub fn vm(&self, name: &str) -> Option<u16> {
        self.vms.iter().position(|vm| vm.name == name).map(|index| index as u16)
    }

    /// Whether the VMs, out of a bundle of so many bytes, fit into the host's memory, by the hypervisor's own rules.
    pub(crate) fn check_memory(&self, bundle: u64) -> Result<(), SiteError> {
        let Some(host) = &self.host else { return Ok(()) };
        let needs = Needs::of(self.vms.iter().map(Share::of), host.cpus.into(), host.memory, bundle);
        needs.fit(host.memory).map_err(|error| {
            let memory = crate::size::show(host.memory);
            self.mistake(self.lines.host_memory, format!("memory = \"{memory}\": {error}"))
        })
    }
}
