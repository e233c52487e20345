//! Calls to the hypervisor through the debug channel: any registers, on a service with small limits.

use crate::input::Input;
use abi::bundle::{Calls, Group};
use units::Direction;
use vmware::{
    BufferError, Config, Door, ExceptionLevel, Host, Limits, Outcome, Service, WallTime, WatchdogCall, Whose,
};

/// A host whose guest has 4 KiB of memory at 0.
pub(crate) struct Machine {
    memory: [u8; 4096],
    clock: u64,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self { memory: [0x20; 4096], clock: 0 }
    }

    /// The guest writes its memory.
    pub(crate) fn put(&mut self, at: u64, bytes: &[u8]) {
        self.memory[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    /// What is in the guest's memory.
    pub(crate) fn get(&self, at: u64, length: usize) -> &[u8] {
        &self.memory[at as usize..][..length]
    }

    /// Time passes, in milliseconds.
    pub(crate) fn pass(&mut self, milliseconds: u64) {
        self.clock += milliseconds;
    }

    pub(crate) fn now(&self) -> u64 {
        self.clock
    }

    fn range(&self, at: u64, length: usize, direction: Direction) -> Result<std::ops::Range<usize>, BufferError> {
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
        let range = self.range(from, into.len(), Direction::Read)?;
        into.copy_from_slice(&self.memory[range]);
        Ok(())
    }

    fn write(&mut self, to: u64, bytes: &[u8]) -> Result<(), BufferError> {
        let range = self.range(to, bytes.len(), Direction::Write)?;
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

    fn guest_milliseconds(&mut self) -> u64 {
        self.milliseconds()
    }

    fn log(&mut self, text: &[u8]) -> bool {
        assert!(text.len() <= 65536);
        !self.clock.is_multiple_of(3)
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

    fn watchdog(&mut self, _: WatchdogCall, _: Whose, _: ExceptionLevel) -> Result<u64, u64> {
        Ok(0)
    }
}

/// Makes a call that looks right out of any registers, `choice` says which; returns the control word. The cookies of each
/// channel are 1 and 2; `announced` is the length of the last message that was begun. The numbers are spelled out, here and
/// in `rpc.rs`: beside the payload `doors` they bear witness to `abi::calls`, which everybody else takes them from.
fn look_right(x: &mut [u64; 8], choice: u8, announced: &mut u64) -> u64 {
    x[0] = 0x564d_5868;
    let id = x[3] & 3 << 16;
    match choice & 3 {
        0 => {
            x[2] = u64::from(choice >> 2 & 7) << 16 | 0x1e;
            x[3] = id | 0x5658;
            (x[4], x[5]) = (1, 2);
            if x[2] == 0x1e {
                x[1] = if x[1] & 1 == 0 { 0xc943_5052 } else { 0xcf4c_4354 };
            } else if x[2] == 0x1_001e {
                x[1] &= 0xfff;
                *announced = x[1];
            }
            0x0e
        }
        1 => {
            x[3] = id | 0x5659 | x[3] & 2;
            x[2] = *announced;
            (x[4], x[5], x[6]) = (x[4] & 0x1fff, 2, 1);
            0x18
        }
        2 => {
            x[3] = id | 0x5659;
            x[2] &= 0x1f;
            (x[4], x[5], x[6]) = (1, x[5] & 0x1fff, 2);
            0x1c
        }
        _ => {
            x[0] = 0x3176_4355;
            let string = x[3] & 1 != 0;
            x[3] = 0x5543;
            x[4] &= 0x1fff;
            if string {
                0x18
            } else {
                x[2] &= 7;
                0x0e
            }
        }
    }
}

/// Plays `data` as calls; a call that faults changes nothing, and none changes what it must not.
pub fn calls(data: &[u8]) {
    let limits = Limits { channels: 4, message: 4096, buffers: 8192, keys: 4, store: 1024, ..Limits::DEFAULT };
    let (user, kernel) = (Calls::only(&[Group::Rpc, Group::Time, Group::Hardware]), Calls::ALL);
    let config = Config { uuid: [7; 16], memory: 1 << 30, megahertz: 1, time_sync: true, limits, user, kernel };
    let mut service = Service::new(config, 0);
    let mut machine = Machine::new();
    let mut input = Input(data);
    let mut announced = 0;
    while !input.is_empty() {
        let shape = input.byte();
        let mut x: [u64; 8] = [0; 8];
        for (number, register) in x.iter_mut().enumerate() {
            *register = if shape >> number & 1 != 0 { input.double() } else { u64::from(input.half()) };
        }
        let mut control = x[7] & 0x3f;
        if shape & 1 == 0 {
            control = look_right(&mut x, input.byte(), &mut announced);
        }
        x[7] = 0x86 << 32 | control;
        let before = x;
        let Some(access) = vmware::decode(Door::DebugChannel { rt: 31 }, x[3], x[7]) else { continue };
        let level = if shape & 2 == 0 { ExceptionLevel::User } else { ExceptionLevel::Kernel };
        let outcome = service.call(access, &mut x, level, &mut machine);
        assert_eq!(before[6..], x[6..]);
        if matches!(outcome, Outcome::Fault { .. }) {
            assert_eq!(before, x);
        }
        assert!(service.open_channels() <= 4);
        assert!(service.buffered() <= limits.buffers + 4 * 15);
        assert!(service.state.store.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() <= 1024);
    }
}
