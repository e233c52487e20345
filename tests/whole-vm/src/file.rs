//! A VM that stands still as a file, with its memory, and back: as the hypervisor's `link/transfer.rs` does it.

use abi::bundle::{Backend, Disk, Disks, Port, Ports, Vm};
use abi::crc32c;
use snapshot::SavedVm;
use snapshot::file::{Content, Description, FileError, Reader, SavedMoment, Section, Writer};
use units::{Ipa, PAGE_SIZE};

use crate::whole::{CHANGES, SERIAL, WholeVm, mac};

impl WholeVm {
    /// Its file.
    ///
    /// # Panics
    /// If it does not stand still.
    #[must_use]
    pub fn to_file(&self) -> Vec<u8> {
        let state = self.save().expect("it stands still");
        let ram = self.plan.ram();
        let doors = self.policy;
        let disks = Disks::of([Disk { backend: Backend::Image { image: (), changes: CHANGES }, serial: SERIAL }])
            .expect("one is not too many");
        let ports = Ports::of([Port { network: "lan", vlan: 0, mac: mac(0), mtu: 1500 }]).expect("one is not too many");
        let vm: Description<'_> =
            Vm { vcpus: state.machine.vcpus, doors, disks, ports, ..Vm::new("whole", (), ram.size) };
        let moment = SavedMoment { microseconds: 0, is_known: false };
        let mut writer = Writer::new(crc32c::compute);
        let mut file = writer.begin(&vm, &state.machine, moment).expect("there is memory");
        file.extend(writer.state(&state).expect("there is memory"));
        let memory = self.shared.memory.borrow();
        for number in 0..(ram.size + CHANGES) / PAGE_SIZE {
            let page = memory.page(Ipa(ram.start.0 + number * PAGE_SIZE));
            file.extend(writer.memory(page.map_or(Content::Fill(0), Content::Page), 1).expect("there is memory"));
        }
        drop(memory);
        file.extend(writer.end().expect("there is memory"));
        file
    }

    /// Puts a file in, whose VM is one as this, which was built for it ([`WholeVm::for_state`]).
    ///
    /// # Errors
    /// What is wrong with it.
    ///
    /// # Panics
    /// If it is cut off.
    pub fn restore_file(&mut self, file: &[u8]) -> Result<(), FileError> {
        let (start, mut loaded) = (self.plan.ram().start, Vec::new());
        let state = read(file, |first, count, content| {
            let page = match content {
                Content::Fill(0) => return,
                Content::Fill(word) => std::array::from_fn(|place| word.to_le_bytes()[place % 8]),
                Content::Page(page) => *page,
            };
            (first..first + count).for_each(|number| loaded.push((Ipa(start.0 + number * PAGE_SIZE), page)));
        })?;
        for (at, page) in loaded {
            self.shared.memory.borrow_mut().load(at, page);
        }
        self.put_in(state).map_err(FileError::State)
    }
}

/// The state that is in a file, with `look` at its memory. What takes memory asks for it.
///
/// # Errors
/// What is wrong with it.
pub fn read(file: &[u8], mut look: impl FnMut(u64, u64, Content<'_>)) -> Result<SavedVm, FileError> {
    let mut reader = Reader::new(crc32c::compute);
    let (mut state, mut input) = (None, file);
    while let Some(section) = reader.read(&mut input)? {
        match section {
            Section::Memory(runs) => runs.for_each(|run| look(run.first, run.count, run.content)),
            Section::State(found) => state = Some(found.into_inner()),
            Section::Vm(_) | Section::Machine(_) | Section::Moment(_) | Section::End => {}
        }
    }
    reader.finish()?;
    state.ok_or(FileError::Short(file.len() as u64))
}
