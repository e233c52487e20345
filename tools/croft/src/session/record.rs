//! `--log-dir`: a file for each console, and one for the log.

use abi::link::Channel;
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The files. A console's holds its raw bytes; a virtio console's is made when the first byte comes.
#[derive(Debug)]
pub(super) struct Recorder {
    folder: PathBuf,
    names: Vec<String>,
    files: HashMap<Channel, File>,
    /// Said once, at the first failure.
    failed: bool,
}

impl Recorder {
    pub(super) fn new(folder: &Path, names: &[String]) -> std::io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mut recorder =
            Self { folder: folder.to_path_buf(), names: names.to_vec(), files: HashMap::new(), failed: false };
        recorder.open(Channel::Log)?;
        for vm in 0..names.len() {
            recorder.open(Channel::Console(units::VmId(vm as u16)))?;
        }
        Ok(recorder)
    }

    fn open(&mut self, channel: Channel) -> std::io::Result<()> {
        let name = |vm: units::VmId| self.names.get(usize::from(vm.0)).map_or("", String::as_str);
        let file = match channel {
            Channel::Control | Channel::Requests => return Ok(()),
            Channel::Log => "hypervisor.log".to_owned(),
            Channel::Console(vm) => format!("{}.console", name(vm)),
            Channel::VirtioConsole(vm) => format!("{}.hvc0", name(vm)),
        };
        self.files.insert(channel, File::create(self.folder.join(file))?);
        Ok(())
    }

    /// Appends to the channel's file. A full disk must not end the session; it is said once.
    pub(super) fn write(&mut self, channel: Channel, bytes: &[u8]) {
        let mut try_to = || {
            if !self.files.contains_key(&channel) {
                self.open(channel)?;
            }
            self.files.get_mut(&channel).map_or(Ok(()), |file| file.write_all(bytes))
        };
        if let Err(error) = try_to()
            && !self.failed
        {
            self.failed = true;
            eprintln!("croft: {}: the logs are incomplete: {error}", self.folder.display());
        }
    }
}
