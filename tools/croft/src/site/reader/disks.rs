//! What a site file says of disks, and of what several of them are together.

use super::{Entry, Form, Mistake, Reader, Text, Value, Values};
use crate::site::Vm;
use abi::bundle::{self, Backend, HostPart};
use std::path::{Path, PathBuf};

impl<'t> Reader<'t> {
    fn wrong_in_line(&mut self, line: usize, message: String) {
        self.mistakes.push(Mistake { file: self.file.to_path_buf(), line, message });
    }

    /// The disks, each with a serial number of its own.
    pub(super) fn disks(&mut self, keys: &Values, folder: &Path) -> Option<bundle::Disks<String, PathBuf>> {
        let mut all: Vec<bundle::Disk<String, PathBuf>> = Vec::new();
        for (index, disk) in keys.tables("disk").iter().enumerate() {
            let serial = disk.given_text("serial").map_or_else(|| format!("disk{index}"), str::to_owned);
            if all.iter().any(|other| other.serial == serial) {
                if disk.given_text("serial").is_some() {
                    let message = format!("serial = \"{serial}\": another disk of the VM has it; each needs its own");
                    self.wrong_in_line(disk.line("serial"), message);
                } else {
                    let message =
                        format!("its serial number would be {serial}, which another disk of the VM has; give it one");
                    self.wrong_in_line(disk.line("image").max(disk.line("host")), message);
                }
            }
            let backend = match disk.given_text("host") {
                Some(name) => Backend::Host(HostPart {
                    disk: name.to_owned(),
                    offset: disk.number("offset"),
                    size: disk.given_number("size").unwrap_or(0),
                    read_only: disk.flag("read-only"),
                }),
                None => Backend::Image {
                    image: folder.join(disk.text("image")),
                    changes: disk.given_number("changes").unwrap_or(0),
                },
            };
            all.push(bundle::Disk { backend, serial });
        }
        bundle::Disks::of(all)
    }

    /// Two disks that may be written have nothing of a host's disk in common. Where one is named in two ways, the hypervisor finds out.
    pub(super) fn check_writers(&mut self, vms: &[Vm]) {
        let lines = self.lines.vms.clone();
        let all = vms.iter().zip(&lines).flat_map(|(vm, lines)| {
            let disks = vm.disks.iter().zip(lines.disks);
            disks.filter_map(move |(disk, line)| Some((vm, disk, disk.host().filter(|part| !part.read_only)?, line)))
        });
        let all: Vec<_> = all.collect();
        for (index, (vm, disk, part, line)) in all.iter().enumerate() {
            let other = all.iter().take(index).find(|(_, _, other, _)| other.disk == part.disk && other.overlaps(part));
            if let Some((other_vm, other, _, other_line)) = other {
                let (name, serial) = (&other_vm.name, &other.serial);
                let message = format!(
                    "host = \"{}\": disk {} of {} may write where disk {serial} of {name} (line {other_line}) may; give them parts that are \
                     apart, with offset and size, or add read-only = true",
                    part.disk, disk.serial, vm.name
                );
                self.wrong_in_line(*line, message);
            }
        }
    }

    /// A text by this rule, or a list of them, of which there may be so many.
    pub(super) fn texts(&mut self, found: &Entry<'_, 't>, rule: Text, most: usize, what: &str) -> Option<Vec<String>> {
        let form = Form::Text(rule);
        let one = |reader: &mut Self, entry: &Entry<'_, 't>| match reader.value(entry, &form) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        };
        let Some(list) = found.value.get_ref().as_array() else {
            return one(self, found).map(|text| vec![text]);
        };
        if list.len() > most {
            self.wrong(found, format!("{} {what}; there may be at most {most}", list.len()));
            return None;
        }
        let all: Vec<_> = list.iter().map(|value| one(self, &Entry { key: found.key, value })).collect();
        all.into_iter().collect()
    }
}
