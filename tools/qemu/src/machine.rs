//! The host machine that everything runs on: QEMU's `virt` with a GICv3, entered at EL2 (or at EL1, to see what a
//! guest does without a hypervisor).

use crate::{Console, Error, Qemu, end_of_wait, find, io};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Where the machine's first serial port goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serial {
    /// To this process's own terminal, with QEMU's escape keys (Ctrl-A X ends the machine).
    Stdio,
    /// To a pair of pipes, see [`Running::serial`] and [`Running::console`].
    Pipe,
}

/// The exception level at which the kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExceptionLevel {
    /// The bare machine without virtualisation: what guests are compared with.
    El1,
    /// The machine for a hypervisor.
    El2,
}

/// Firmware that starts the machine, in place of QEMU's own loader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firmware {
    /// What is in the machine's flash.
    pub flash: PathBuf,
    /// A raw disk from which it boots. It is on NVMe, beside whatever disks the machine has otherwise, and is not written to.
    pub disk: PathBuf,
}

/// A machine to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// QEMU's name of the CPU model, with its options: `max`, `cortex-a72`, `cortex-a76,cntfrq=1000000000`.
    pub cpu: String,
    /// How many CPUs.
    pub cpus: u32,
    /// RAM in MiB.
    pub memory: u32,
    /// Firmware. It finds what it boots on its disk, and `kernel`, `initrd` and `append` go unused. It describes the machine by a device
    /// tree.
    pub firmware: Option<Firmware>,
    /// An arm64 `Image`.
    pub kernel: PathBuf,
    /// The initial ramdisk: for Undercroft, the bundle.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub append: String,
    /// Whether time is counted in instructions: one nanosecond each, one CPU thread, no sleeping. Repeatable to the last
    /// digit, as long as nobody types, and the way in which everything is measured. A `-seed` among `extra_args` gives other
    /// random numbers than the usual ones.
    pub icount: bool,
    /// Where the kernel is entered.
    pub level: ExceptionLevel,
    /// More arguments, as they are.
    pub extra_args: Vec<String>,
    /// Where the first serial port goes.
    pub serial: Serial,
}

impl Machine {
    /// A machine for a hypervisor: `max`, two CPUs, 2 GiB, its serial port on pipes.
    pub fn new(kernel: impl Into<PathBuf>) -> Machine {
        Machine {
            cpu: "max".into(),
            cpus: 2,
            memory: 2048,
            firmware: None,
            kernel: kernel.into(),
            initrd: None,
            append: String::new(),
            icount: false,
            level: ExceptionLevel::El2,
            extra_args: Vec::new(),
            serial: Serial::Pipe,
        }
    }

    /// The arguments that QEMU gets.
    pub fn arguments(&self) -> Vec<String> {
        let board = match self.level {
            ExceptionLevel::El1 => "virt,gic-version=3",
            ExceptionLevel::El2 => "virt,virtualization=on,gic-version=3",
        };
        let mut arguments: Vec<String> = Vec::new();
        let mut push = |words: &[&str]| arguments.extend(words.iter().map(|word| (*word).to_owned()));
        let description = if self.firmware.is_some() { ",acpi=off" } else { "" };
        push(&["-M", &format!("{board}{description}"), "-cpu", &self.cpu]);
        push(&["-smp", &self.cpus.to_string(), "-m", &self.memory.to_string(), "-nodefaults", "-display", "none"]);
        if let Some(firmware) = &self.firmware {
            // A comma in a value is written twice.
            let disk = firmware.disk.display().to_string().replace(',', ",,");
            let drive = format!("if=none,id=boot,format=raw,readonly=on,file.driver=file,file.filename={disk}");
            push(&[
                "-bios",
                &firmware.flash.to_string_lossy(),
                "-drive",
                &drive,
                "-device",
                "nvme,drive=boot,serial=boot",
            ]);
        } else {
            push(&["-kernel", &self.kernel.to_string_lossy()]);
            if let Some(initrd) = &self.initrd {
                push(&["-initrd", &initrd.to_string_lossy()]);
            }
            if !self.append.is_empty() {
                push(&["-append", &self.append]);
            }
        }
        if self.icount {
            // Without a seed, what QEMU calls random differs from run to run (the tree's `rng-seed`, RNDR), and with it a
            // Linux's hash chains; without `clock=vm`, the real-time clock follows the machine that QEMU runs on.
            push(&["-icount", "shift=0,sleep=off", "-rtc", "base=2026-01-01,clock=vm"]);
            // QEMU takes one seed only.
            if !self.extra_args.iter().any(|argument| argument == "-seed") {
                push(&["-seed", "1"]);
            }
        }
        match self.serial {
            Serial::Stdio => push(&["-serial", "mon:stdio"]),
            Serial::Pipe => push(&["-serial", "stdio", "-monitor", "none"]),
        }
        arguments.extend(self.extra_args.iter().cloned());
        arguments
    }

    /// Starts the machine on the QEMU that [`find`] finds.
    ///
    /// # Errors
    /// No QEMU, one that is too old, or the operating system's refusal.
    pub fn spawn(&self) -> Result<Running, Error> {
        self.spawn_on(&find()?)
    }

    /// Starts the machine on this QEMU.
    ///
    /// # Errors
    /// The operating system's refusal.
    pub fn spawn_on(&self, qemu: &Qemu) -> Result<Running, Error> {
        let mut command = Command::new(&qemu.program);
        command.args(self.arguments());
        if self.serial == Serial::Pipe {
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
        }
        let child = command.spawn().map_err(io(format!("starting {}", qemu.program.display())))?;
        Ok(Running { child })
    }
}

/// A machine that runs. Dropping it ends it.
#[derive(Debug)]
pub struct Running {
    child: Child,
}

impl Running {
    /// The two ends of the serial port: what the machine prints, and what it is to read.
    ///
    /// # Errors
    /// [`Error::NoSerial`] if the port is no pipe, or was taken before.
    pub fn serial(&mut self) -> Result<(ChildStdout, ChildStdin), Error> {
        self.child.stdout.take().zip(self.child.stdin.take()).ok_or(Error::NoSerial)
    }

    /// The serial port as something to wait on.
    ///
    /// # Errors
    /// As [`Running::serial`].
    pub fn console(&mut self) -> Result<Console, Error> {
        let (output, input) = self.serial()?;
        Ok(Console::new(output, input))
    }

    /// The process id of QEMU.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the machine ends by itself.
    ///
    /// # Errors
    /// The operating system's refusal.
    pub fn wait(&mut self) -> Result<ExitStatus, Error> {
        self.child.wait().map_err(io("waiting for QEMU"))
    }

    /// Waits until the machine ends by itself, but no longer than `limit`. `None` if it still runs.
    ///
    /// # Errors
    /// The operating system's refusal.
    pub fn wait_for(&mut self, limit: Duration) -> Result<Option<ExitStatus>, Error> {
        let end = end_of_wait(Instant::now(), limit);
        loop {
            let status = self.child.try_wait().map_err(io("waiting for QEMU"))?;
            if status.is_some() || Instant::now() >= end {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends the machine at once.
    ///
    /// # Errors
    /// The operating system's refusal.
    pub fn kill(&mut self) -> Result<(), Error> {
        self.child.kill().map_err(io("ending QEMU"))?;
        self.wait().map(drop)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already, and there is nobody left to tell.
        drop(self.kill());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_the_command_line() {
        let mut machine = Machine::new("undercroft.img");
        machine.initrd = Some("site.bundle".into());
        machine.append = "console=ttyAMA0".into();
        machine.icount = true;
        machine.extra_args = vec!["-no-reboot".into()];
        let line = machine.arguments().join(" ");
        assert!(line.starts_with("-M virt,virtualization=on,gic-version=3 -cpu max -smp 2 -m 2048"), "{line}");
        assert!(line.contains("-kernel undercroft.img -initrd site.bundle -append console=ttyAMA0"), "{line}");
        let counted = "-icount shift=0,sleep=off -rtc base=2026-01-01,clock=vm -seed 1";
        assert!(line.ends_with(&format!("{counted} -serial stdio -monitor none -no-reboot")), "{line}");
        machine.extra_args = vec!["-seed".into(), "2".into()];
        let line = machine.arguments().join(" ");
        assert!(line.ends_with("clock=vm -serial stdio -monitor none -seed 2"), "{line}");
    }

    #[test]
    fn firmware_finds_everything_on_its_disk() {
        let firmware = Firmware { flash: "QEMU_EFI.fd".into(), disk: "a,b.img".into() };
        let machine =
            Machine { firmware: Some(firmware), initrd: Some("x".into()), append: "y".into(), ..Machine::new("z") };
        let line = machine.arguments().join(" ");
        assert!(line.starts_with("-M virt,virtualization=on,gic-version=3,acpi=off -cpu max "), "{line}");
        assert!(line.contains(" -bios QEMU_EFI.fd -drive if=none,id=boot,"), "{line}");
        assert!(line.contains("filename=a,,b.img -device nvme,drive=boot,"), "{line}");
        assert!(!["-kernel", "-initrd", "-append"].iter().any(|option| line.contains(option)), "{line}");
    }

    #[test]
    fn leaves_out_virtualisation_at_el1() {
        let machine = Machine { level: ExceptionLevel::El1, serial: Serial::Stdio, ..Machine::new("Image") };
        let line = machine.arguments().join(" ");
        assert!(line.starts_with("-M virt,gic-version=3 "), "{line}");
        assert!(line.ends_with("-serial mon:stdio"), "{line}");
    }

    #[test]
    fn ends_a_machine_that_is_dropped_and_gives_its_port_once() {
        let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("cat");
        let mut running = Running { child };
        let (output, input) = running.serial().expect("the port");
        assert!(matches!(running.serial(), Err(Error::NoSerial)));
        let mut console = Console::new(output, input);
        console.send("hello\n").expect("sent");
        console.expect("hello", Duration::from_secs(10)).expect("echoed");
        assert!(running.wait_for(Duration::ZERO).expect("asked").is_none());
        drop(running);
        let ended = console.expect("more", Duration::from_secs(10));
        assert!(matches!(ended, Err(Error::Ended { .. })), "{ended:?}");
    }
}
