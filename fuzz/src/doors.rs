//! Calls to the hypervisor through the debug channel: any registers, on a service with small limits.

use crate::input::Input;
use backdoor::commands::Groups;
use backdoor::{BufferError, Config, Door, Host, Level, Limits, Outcome, Service, WallTime, Watchdog, Whose};

/// A host whose guest has 4 KiB of memory at 0.
struct Machine {
    memory: [u8; 4096],
    clock: u64,
}

impl Machine {
    fn range(
        &self,
        at: u64,
        length: usize,
        direction: backdoor::Direction,
    ) -> Result<std::ops::Range<usize>, BufferError> {
        let start = usize::try_from(at).map_err(|_| BufferError::NotMemory)?;
        let end = start.checked_add(length).ok_or(BufferError::NotMemory)?;
        if end > self.memory.len() {
            return Err(BufferError::Fault { address: at, status: 7, direction });
        }
        Ok(start..end)
    }
}

impl Host for Machine {
    fn read(&mut self, from: u64, into: &mut [u8]) -> Result<(), BufferError> {
        let range = self.range(from, into.len(), backdoor::Direction::Out)?;
        into.copy_from_slice(&self.memory[range]);
        Ok(())
    }

    fn write(&mut self, to: u64, bytes: &[u8]) -> Result<(), BufferError> {
        let range = self.range(to, bytes.len(), backdoor::Direction::In)?;
        self.memory[range].copy_from_slice(bytes);
        Ok(())
    }

    fn random(&mut self) -> u64 {
        0x0000_0001_0000_0002
    }

    fn time(&mut self) -> WallTime {
        WallTime::default()
    }

    fn milliseconds(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn log(&mut self, text: &[u8]) {
        assert!(text.len() <= 65536);
    }

    fn features(&mut self) -> u64 {
        0
    }

    fn statistic(&mut self, number: u32) -> Option<(&'static str, u64, u32)> {
        (number == 0).then_some(("a name that is longer than 24 bytes", 1, 1))
    }

    fn clock(&mut self) -> (u64, u64) {
        (1, 0)
    }

    fn watchdog(&mut self, _: Watchdog, _: Whose, _: Level) -> Result<u64, u64> {
        Ok(0)
    }
}

/// Plays `data` as calls; a call that faults changes nothing, and none changes what it must not.
pub fn calls(data: &[u8]) {
    let limits = Limits { channels: 4, message: 4096, buffers: 8192, keys: 4, store: 1024, ..Limits::DEFAULT };
    let (user, kernel) = (Groups(7), Groups::ALL);
    let config = Config { uuid: [7; 16], memory: 1 << 30, megahertz: 1, time_sync: true, limits, user, kernel };
    let mut service = Service::new(config, 0);
    let mut machine = Machine { memory: [0x20; 4096], clock: 0 };
    let mut input = Input(data);
    while !input.is_empty() {
        let shape = input.byte();
        let mut x: [u64; 8] = [0; 8];
        for (number, register) in x.iter_mut().enumerate() {
            *register = if shape >> number & 1 != 0 { input.double() } else { u64::from(input.half()) };
        }
        if shape & 1 == 0 {
            // A call that looks right.
            x[0] = 0x564d_5868;
            x[2] = x[2] & 0x7_0000 | 0x1e;
            x[3] = x[3] & 3 << 16 | 0x5658 | x[3] & 1;
            (x[4], x[5], x[6]) = if x[3] & 1 == 0 { (1, 2, 0) } else { (x[4] & 0x1fff, 2, 1) };
        }
        x[7] = 0x86 << 32 | x[7] & 0x3f;
        let before = x;
        let Some(access) = backdoor::decode(Door::DebugChannel { rt: 31 }, x[3], x[7]) else { continue };
        let level = if shape & 2 == 0 { Level::User } else { Level::Kernel };
        let outcome = service.call(access, &mut x, level, &mut machine);
        assert_eq!(before[6..], x[6..]);
        if matches!(outcome, Outcome::Fault { .. }) {
            assert_eq!(before, x);
        }
        assert!(service.open_channels() <= 4);
        assert!(service.state.store.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() <= 1024);
    }
}
