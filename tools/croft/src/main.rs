//! `croft`: the operator's command line.
#![forbid(unsafe_code)]

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use croft::attach::{self, End};
use croft::control::{self, ControlError, Order as HostOrder, Report, Vm};
use croft::operate::{self, LogLines, Meanwhile};
use croft::output::{self, Written, is_same_file};
use croft::run::{self, Request};
use croft::saved::SavedError;
use croft::session::{built_image, make_boot_disk, status};
use croft::site::{Site, SiteError};
use croft::{bundle, dump, moment, printable, size, statistics};
use std::io::{ErrorKind, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

const STATUSES: &str = "Exit status:
    0    all is well; with --until-stopped: every VM powered itself off
    1    a VM crashed or was stopped by force, or the hypervisor failed or refused
    2    wrong arguments, among them a VM that is not there, or a mistake in the site file or in a file that it names
    3    the emulated host could not be started, is not there, or ended under running VMs
    4    all is well, but not all of the output or of the logs could be written
  124    the time given with --timeout was up
  128+N  ended by signal N";

const RUN_HELP: &str = "In a terminal, one VM's console is in the foreground; Ctrl-] h shows the keys \
(Ctrl-] n: next VM, Ctrl-] l: log, Ctrl-] q: quit).
Without a terminal, every line is printed with its VM's name, and nothing is read.";

const CONSOLE_HELP: &str = "First comes the last of what the console printed. \
The terminal of `croft run` shows and types there too.
Without a terminal, standard input is sent as it is, and its end ends the command, after what the guest has \
printed by then: (echo date; sleep 1) | croft console web";

const IMAGE_HELP: &str = "On a stick or a disk: dd if=FILE of=/dev/DISK bs=4M conv=fsync
The firmware has to describe the machine by a device tree; in QEMU: -M virt,virtualization=on,gic-version=3,acpi=off
The command line is the file undercroft/arguments.txt of the disk, and can be changed there.";

const STAT_HELP: &str = "A vCPU `ran` while it had a CPU. One that has its CPU to itself has it also while its guest is idle: it sleeps there by
WFI, which is then no exit, so that it wakes sooner. Where several vCPUs share a CPU, a guest that is idle gives it away,
and that is not counted.";

const DUMP_HELP: &str = "Addresses in the file are physical ones of the guest:
    gdb-multiarch -ex 'set architecture aarch64' -ex 'core-file FILE' -ex 'info threads'
    crash vmlinux FILE
A VM that its watchdog has paused stays as it is, and can be dumped.";

const COMPLETIONS_HELP: &str = "bash: croft completions bash > ~/.local/share/bash-completion/completions/croft
zsh:  croft completions zsh > DIR/_croft, where DIR is in $fpath
fish: croft completions fish > ~/.config/fish/completions/croft.fish";

/// Works with Undercroft sites: bundles them, and runs them on an emulated Arm host.
#[derive(Parser)]
#[command(version, after_help = STATUSES)]
struct Arguments {
    #[command(subcommand)]
    command: Order,
}

#[derive(Subcommand)]
enum Order {
    /// Make the bundle that the hypervisor boots with: a site's VMs, kernels and ramdisks in one checked file.
    #[command(after_help = STATUSES)]
    Bundle {
        /// The site file.
        site: PathBuf,
        /// Where the bundle goes.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Make a disk from which a machine with UEFI firmware boots the hypervisor with this site: a GPT with an EFI system partition.
    #[command(after_help = format!("{IMAGE_HELP}\n\n{STATUSES}"))]
    Image {
        /// The site file.
        site: PathBuf,
        /// Where the disk's image goes.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// The hypervisor's image, instead of the one that `cargo xtask build` makes; BOOTAA64.EFI is expected beside it.
        #[arg(long, value_name = "FILE")]
        image: Option<PathBuf>,
        /// The hypervisor's command line.
        #[arg(long, value_name = "WORDS", default_value = "")]
        arguments: String,
    },
    /// Check a site file and all the files that it names, and start nothing.
    #[command(after_help = STATUSES)]
    Check {
        /// The site file.
        site: PathBuf,
    },
    /// Run a site on an emulated host (QEMU), with this terminal attached.
    #[command(after_help = format!("{RUN_HELP}\n\n{STATUSES}"))]
    Run(Request),
    /// Print the script that lets a shell complete croft's commands and options.
    #[command(after_help = COMPLETIONS_HELP)]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// List the VMs of a running host, and what the guests' tools say of them.
    Ps {
        #[command(flatten)]
        host: HostPlace,
        /// The VMs' names; without any, all VMs.
        #[arg(value_name = "VM")]
        vms: Vec<String>,
        /// As JSON, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Read and set the values that a VM's guest and its operator leave for each other (VMware's guestinfo).
    Guestinfo {
        #[command(flatten)]
        host: HostPlace,
        /// The VM's name.
        vm: String,
        /// Without it, all keys are listed.
        #[command(subcommand)]
        command: Option<GuestinfoCommand>,
    },
    /// Attach this terminal to a VM's console; Ctrl-] q leaves it.
    #[command(after_help = CONSOLE_HELP)]
    Console {
        #[command(flatten)]
        host: HostPlace,
        /// The VM's name.
        vm: String,
        /// Its virtio console (hvc0), not its PL011 (ttyAMA0).
        #[arg(long)]
        virtio: bool,
    },
    /// Print what is kept of the hypervisor's log.
    Log {
        #[command(flatten)]
        host: HostPlace,
        /// And what comes from now on, until the host ends.
        #[arg(long)]
        follow: bool,
    },
    /// Print what the hypervisor counts: exits by reason, CPU time, memory.
    #[command(after_help = STAT_HELP)]
    Stat {
        #[command(flatten)]
        host: HostPlace,
        /// The VMs' names; without any, all VMs and the host itself.
        #[arg(value_name = "VM")]
        vms: Vec<String>,
        /// As JSON, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Start VMs that are off.
    Start {
        #[command(flatten)]
        host: HostPlace,
        #[command(flatten)]
        which: Which,
    },
    /// Shut VMs down, one after the other: by its guest's tools if they run, else by its power button.
    Stop {
        #[command(flatten)]
        host: HostPlace,
        #[command(flatten)]
        how: How,
    },
    /// Reboot VMs, or start those that are off: by its guest's tools if they run, else by its power button.
    Reboot {
        #[command(flatten)]
        host: HostPlace,
        #[command(flatten)]
        how: How,
    },
    /// Let VMs stand still, and their watchdogs with them.
    Pause {
        #[command(flatten)]
        host: HostPlace,
        #[command(flatten)]
        which: Which,
    },
    /// Show the host's time of day, set it, or have a guest take it over.
    Time {
        #[command(flatten)]
        host: HostPlace,
        /// Set the host's real-time clock: now (as on this computer), 2026-11-25T22:17:38Z (RFC 3339), or @ and the seconds
        /// since 1970. The guests' real-time clocks follow; their systems do as their tools are told to.
        #[arg(long, value_name = "TIME", value_parser = moment::parse, conflicts_with = "sync")]
        set: Option<u64>,
        /// Have this VM's tools set its guest's clock to the host's once, forward or back.
        #[arg(long, value_name = "VM")]
        sync: Option<String>,
    },
    /// Save a VM to a file: what it is, its state and its memory. It is saved as it is at that moment, and runs on.
    Save {
        #[command(flatten)]
        host: HostPlace,
        /// The VM's name.
        vm: String,
        /// The file. If there is one of that name, it is replaced when the new one is whole.
        file: PathBuf,
        /// Compress its memory (LZ4). `croft restore` and `croft dump --from` read both.
        #[arg(long)]
        compress: bool,
    },
    /// Write a VM's memory and registers, as they are at that moment, to a file that gdb and crash read (an ELF core). It runs on.
    #[command(allow_missing_positional = true, after_help = DUMP_HELP)]
    Dump {
        #[command(flatten)]
        host: HostPlace,
        /// The VM's name.
        #[arg(required_unless_present = "from", conflicts_with = "from")]
        vm: Option<String>,
        /// The file. If there is a core of that name, it is replaced when the new one is whole.
        file: PathBuf,
        /// Of this file that `croft save` wrote, not of a VM of a host that runs.
        #[arg(long, value_name = "SAVED")]
        from: Option<PathBuf>,
    },
    /// Let a saved VM take the place of one that is off. The site file must say the same of its vCPUs, memory, rate of time and calls.
    Restore {
        #[command(flatten)]
        host: HostPlace,
        /// The file that `croft save` wrote.
        file: PathBuf,
        /// The VM whose place it takes; without it, the one with the name of the saved one.
        #[arg(long, value_name = "VM")]
        name: Option<String>,
        /// It stands still until `croft resume` lets it go on.
        #[arg(long)]
        pause: bool,
    },
    /// Let a clone of a VM take the place of one that is off. The clone is as the VM is at that moment, which runs on.
    Clone {
        #[command(flatten)]
        host: HostPlace,
        /// The VM's name.
        vm: String,
        /// The VM whose place the clone takes: one of the site file with the same vCPUs, memory, rate of time and calls, which is off.
        #[arg(long, value_name = "VM")]
        name: String,
        /// The clone stands still until `croft resume` lets it go on.
        #[arg(long)]
        pause: bool,
    },
    /// Let VMs go on that were paused, by the operator or by their watchdogs.
    Resume {
        #[command(flatten)]
        host: HostPlace,
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Args)]
struct HostPlace {
    /// The host: the folder that its `croft run` has as --log-dir, or a socket. Without it, the only one that you run.
    #[arg(long, value_name = "DIR", global = true)]
    host: Option<PathBuf>,
}

/// One VM or several.
#[derive(Args)]
struct Which {
    /// The VMs' names.
    #[arg(value_name = "VM", required_unless_present = "all", conflicts_with = "all")]
    vms: Vec<String>,
    /// All VMs for which it makes sense: those that are off to be started, those that run to be paused, and so on.
    #[arg(long)]
    all: bool,
}

#[derive(Args)]
struct How {
    #[command(flatten)]
    which: Which,
    /// At once, without asking the guest.
    #[arg(long)]
    force: bool,
    /// How many seconds the guest may take.
    #[arg(long, value_name = "S", default_value_t = 120)]
    wait: u64,
}

#[derive(Subcommand)]
enum GuestinfoCommand {
    /// Print a value.
    Get {
        /// The key; `guestinfo.` before it may be left out.
        key: String,
    },
    /// Set a value.
    Set {
        /// The key; `guestinfo.` before it may be left out.
        key: String,
        /// The value; it may begin with a hyphen. One that is an option of this command too (-h) goes behind `--`.
        #[arg(allow_hyphen_values = true)]
        value: String,
    },
}

fn main() -> ExitCode {
    croft::panics::end_the_program();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        // What was asked for goes to standard output, which may take nothing.
        Err(told) if !told.use_stderr() => {
            return ExitCode::from(told.print().map_or_else(|error| unwritable(&error), |()| status::OK));
        }
        Err(wrong) => wrong.exit(),
    };
    ExitCode::from(match arguments.command {
        Order::Bundle { site, output } => make_bundle(&site, &output),
        Order::Image { site, output, image, arguments } => make_image(&site, &output, image, &arguments),
        Order::Run(request) => match run::run(&request) {
            Ok(finish) => {
                for line in finish.end.reason().iter().chain(&finish.incomplete) {
                    say(&format!("croft: {line}"));
                }
                finish.exit_status()
            }
            Err(error) => match error.mistakes() {
                Some(mistakes) => tell_mistakes(mistakes),
                None => complain(&error, error.exit_status()),
            },
        },
        Order::Ps { host, vms, json } => list(&host, &vms, json),
        Order::Guestinfo { host, vm, command } => match command {
            None => order(&host, &HostOrder::Keys { vm }, |report| match report {
                Report::Keys(keys) => operate::show_keys(&keys),
                _ => String::new(),
            }),
            Some(GuestinfoCommand::Get { key }) => {
                let host_order = HostOrder::Get { vm, key: operate::whole_key(&key) };
                order(&host, &host_order, |report| match report {
                    Report::Value(value) => operate::show_value(&value),
                    _ => String::new(),
                })
            }
            Some(GuestinfoCommand::Set { key, value }) => {
                let host_order = HostOrder::Set { vm, key: operate::whole_key(&key), value: value.into_bytes() };
                order(&host, &host_order, |_| String::new())
            }
        },
        Order::Check { site } => check(&site),
        Order::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "croft", &mut script);
            print(&String::from_utf8_lossy(&script)).map_or_else(|error| unwritable(&error), |()| status::OK)
        }
        Order::Console { host, vm, virtio } => console(&host, &HostOrder::Console { vm, virtio }),
        Order::Log { host, follow } => log(&host, follow),
        Order::Stat { host, vms, json } => stat(&host, &vms, json),
        Order::Start { host, which } => each(&host, which, |vm| is_off(&vm.word), |vm| HostOrder::Start { vm }),
        Order::Stop { host, how: How { which, force, wait: seconds } } => {
            each(&host, which, |vm| !is_off(&vm.word), |vm| HostOrder::Stop { vm, force, seconds })
        }
        Order::Reboot { host, how: How { which, force, wait: seconds } } => {
            each(&host, which, |_| true, |vm| HostOrder::Reboot { vm, force, seconds })
        }
        Order::Pause { host, which } => {
            // One that is being saved stands still for moments by itself.
            let runs =
                |vm: &Vm| matches!(&*vm.word, "running" | "panicked") || (vm.word == "paused" && is_being_saved(vm));
            each(&host, which, runs, |vm| HostOrder::Pause { vm })
        }
        Order::Save { host, vm, file, compress } => match std::path::absolute(&file) {
            Ok(file) => order(&host, &HostOrder::Save { vm, file, compress }, operate::show_progress),
            Err(source) => complain(&SavedError::Io { file, source }, status::USAGE),
        },
        Order::Dump { host, vm, file, from } => match (std::path::absolute(&file), vm, from) {
            (Ok(file), _, Some(from)) => dump(&from, &file),
            (Ok(file), vm, None) => {
                order(&host, &HostOrder::Dump { vm: vm.unwrap_or_default(), file }, operate::show_progress)
            }
            (Err(source), ..) => complain(&SavedError::Io { file, source }, status::USAGE),
        },
        Order::Restore { host, file, name, pause } => match std::path::absolute(&file) {
            Ok(file) => order(&host, &HostOrder::Restore { vm: name, file, pause }, operate::show_progress),
            Err(source) => complain(&SavedError::Io { file, source }, status::USAGE),
        },
        Order::Clone { host, vm, name, pause } => {
            order(&host, &HostOrder::Clone { vm, name, pause }, operate::show_progress)
        }
        Order::Time { host, set: Some(microseconds), .. } => {
            order(&host, &HostOrder::SetTime { microseconds }, operate::show_progress)
        }
        Order::Time { host, sync: Some(vm), .. } => {
            order(&host, &HostOrder::SetGuestTime { vm }, operate::show_progress)
        }
        Order::Time { host, .. } => order(&host, &HostOrder::Time, operate::show_time),
        Order::Resume { host, which } => each(&host, which, is_to_go_on, |vm| HostOrder::Resume { vm }),
    })
}

/// Whether a VM in this state (`docs/formats/control.md`) is off.
fn is_off(word: &str) -> bool {
    matches!(word, "not-started" | "powered-off" | "stopped" | "crashed")
}

fn is_being_saved(vm: &Vm) -> bool {
    vm.transfer.as_deref() == Some("saved")
}

/// One that waits for its state does that by itself.
fn is_to_go_on(vm: &Vm) -> bool {
    vm.word == "paused" && vm.transfer.as_deref() != Some("restored")
}

/// Has a running host carry out an order for each VM that is meant, one after the other; one that fails keeps none of the
/// others from it. With `--all` those are meant whose state `suits`.
fn each(place: &HostPlace, which: Which, suits: impl Fn(&Vm) -> bool, host_order: impl Fn(String) -> HostOrder) -> u8 {
    // Once: what is wrong with the host itself is said once.
    let socket = match control::find(place.host.as_deref()) {
        Ok(socket) => socket,
        Err(error) => return complain(&error, status_of(&error)),
    };
    let mut vms = which.vms;
    if which.all {
        match known(&socket) {
            Ok(known) => vms = known.into_iter().filter(|vm| suits(vm)).map(|vm| vm.name).collect(),
            Err(error) => return complain(&error, status_of(&error)),
        }
    }
    let statuses = vms.into_iter().map(|vm| order_at(&socket, &host_order(vm), operate::show_progress));
    statuses.fold(status::OK, status::worse)
}

/// The VMs of a running host.
fn known(socket: &Path) -> Result<Vec<Vm>, ControlError> {
    let mut known = Vec::new();
    control::perform(control::connect(socket)?, &HostOrder::List, |report| {
        if let Report::Vms(vms) = report {
            known = vms;
        }
    })?;
    Ok(known)
}

fn list(place: &HostPlace, wanted: &[String], json: bool) -> u8 {
    let listed = control::find(place.host.as_deref()).and_then(|socket| known(&socket));
    match listed.and_then(|vms| operate::select(vms, wanted)) {
        Ok(vms) => {
            let text = if json { operate::show_json(&vms) } else { operate::show_table(&vms, operate::columns()) };
            print(&text).map_or_else(|error| unwritable(&error), |()| status::OK)
        }
        Err(error) => complain(&error, status_of(&error)),
    }
}

/// Has a running host carry out an order, and prints what it reports.
fn order(place: &HostPlace, host_order: &HostOrder, show: impl Fn(Report) -> String) -> u8 {
    match control::find(place.host.as_deref()) {
        Ok(socket) => order_at(&socket, host_order, show),
        Err(error) => complain(&error, status_of(&error)),
    }
}

/// As [`order`], with the host known.
fn order_at(socket: &Path, host_order: &HostOrder, show: impl Fn(Report) -> String) -> u8 {
    let mut unwritten = None;
    let (mut meanwhile, began) = (Meanwhile::new(std::io::stderr().is_terminal()), Instant::now());
    let done = control::connect(socket).and_then(|stream| {
        control::perform(stream, host_order, |report| {
            if let Report::Meanwhile { what, bytes, of } = &report {
                meanwhile.say(began.elapsed(), what, *bytes, *of).into_iter().for_each(output::mutter);
                return;
            }
            meanwhile.clear().into_iter().for_each(output::mutter);
            if unwritten.is_none() {
                unwritten = print(&show(report)).err();
            }
        })
    });
    meanwhile.clear().into_iter().for_each(output::mutter);
    match (done, unwritten) {
        (Ok(()), None) => status::OK,
        (Ok(()), Some(error)) => unwritable(&error),
        (Err(error), _) => complain(&error, status_of(&error)),
    }
}

/// Has a running host carry out an order, and hands on what it reports.
fn ask(place: &HostPlace, host_order: &HostOrder, show: impl FnMut(Report)) -> Result<(), ControlError> {
    control::perform(control::connect(&control::find(place.host.as_deref())?)?, host_order, show)
}

/// The exit status that says this.
fn status_of(error: &ControlError) -> u8 {
    match error {
        ControlError::Failed(_) => status::FAILED,
        ControlError::NotThere(_) => status::USAGE,
        _ => status::HOST,
    }
}

fn console(place: &HostPlace, host_order: &HostOrder) -> u8 {
    let socket = control::find(place.host.as_deref());
    let ended =
        socket.and_then(|socket| control::connect(&socket)).and_then(|stream| attach::attach(&stream, host_order));
    match ended {
        Ok(End::Well) => status::OK,
        Ok(End::Signal(number)) => status::SIGNAL.wrapping_add(number as u8),
        Ok(End::Unwritable(error)) => unwritable(&error),
        Ok(End::Unread) => status::INCOMPLETE,
        Err(error) => complain(&error, status_of(&error)),
    }
}

fn log(place: &HostPlace, follow: bool) -> u8 {
    let (mut lines, mut printed, mut has_begun) = (LogLines::default(), Ok(()), false);
    let socket = control::find(place.host.as_deref());
    let done = socket.and_then(|socket| control::connect(&socket)).and_then(|stream| {
        control::perform_while(stream, &HostOrder::Log { follow }, |report| {
            has_begun = true;
            if let Report::Output(bytes) = report {
                printed = print(&lines.push(&bytes));
            }
            // Whoever follows it without a reader would do so for ever.
            if printed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
    });
    match (done, printed.and_then(|()| print(&lines.finish()))) {
        (Ok(()), Ok(())) => status::OK,
        (Ok(()), Err(error)) => unwritable(&error),
        (Err(error), _) => {
            let error = if follow && has_begun { error.while_followed() } else { error };
            complain(&error, status_of(&error))
        }
    }
}

fn stat(place: &HostPlace, vms: &[String], json: bool) -> u8 {
    let mut text = String::new();
    let asked = ask(place, &HostOrder::Statistics { vms: vms.to_vec() }, |report| {
        if let Report::Statistics(all) = report {
            text = statistics::select(&all, vms);
        }
    });
    if let Err(error) = asked {
        return complain(&error, status_of(&error));
    }
    if json {
        match statistics::to_json(&text) {
            Ok(value) => text = format!("{value:#}\n"),
            Err(error) => return complain(&error, status::FAILED),
        }
    }
    print(&text).map_or_else(|error| unwritable(&error), |()| status::OK)
}

/// Prints text, and says whether it could be.
fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// A reader that went away (`| head`) knows it.
fn unwritable(error: &std::io::Error) -> u8 {
    if error.kind() != ErrorKind::BrokenPipe {
        say(&format!("croft: standard output: {error}"));
    }
    status::INCOMPLETE
}

/// Says something on standard error, where what is quoted must not disturb a terminal.
fn say(text: &str) {
    output::complain(&printable::lines(text));
}

/// Everything begins with the program's name, but for mistakes in a site.
fn complain(error: &dyn std::error::Error, number: u8) -> u8 {
    say(&format!("croft: {error}"));
    number
}

/// Mistakes in a site begin with file and line, as editors and people expect.
fn tell_mistakes(mistakes: &SiteError) -> u8 {
    say(&mistakes.to_string());
    status::USAGE
}

fn check(file: &Path) -> u8 {
    match Site::load(file).and_then(|site| bundle::make(&site).map(|_| site)) {
        Ok(site) => {
            let vms = if site.vms.len() == 1 { "1 VM".to_owned() } else { format!("{} VMs", site.vms.len()) };
            let mut text = format!("{}: {vms}, no mistakes\n", file.display());
            for (vm, wrong) in site.wrong_clocks() {
                text.push_str(&format!("{}: note: {vm}: {wrong}\n", file.display()));
            }
            print(&text).map_or_else(|error| unwritable(&error), |()| status::OK)
        }
        Err(mistakes) => tell_mistakes(&mistakes),
    }
}

/// Makes a core of a saved VM, without any host.
fn dump(from: &Path, to: &Path) -> u8 {
    match dump::file(from, to) {
        Ok(dumped) => {
            let text = printable::lines(&format!("{}: {}", dumped.name, dumped.show(to)));
            print(&format!("{text}\n")).map_or_else(|error| unwritable(&error), |()| status::OK)
        }
        // As where a running host makes one.
        Err(error) => complain(&error, status::FAILED),
    }
}

/// What a bundle is made of.
fn inputs<'a>(file: &'a Path, site: &'a Site) -> impl Iterator<Item = &'a Path> {
    let programs = site.vms.iter().flat_map(|vm| [Some(&vm.kernel), vm.initrd.as_ref()]).flatten();
    let disks = site.vms.iter().flat_map(|vm| vm.disks.iter().filter_map(|disk| disk.image()));
    std::iter::once(file).chain(programs.chain(disks).map(|image| image.as_ref()))
}

fn make_bundle(file: &Path, place: &Path) -> u8 {
    let made = Site::load(file).and_then(|site| bundle::make(&site).map(|bytes| (site, bytes)));
    match made {
        Ok((site, bytes)) => keep(file, &site, place, &bytes, "the bundle", &[]),
        Err(mistakes) => tell_mistakes(&mistakes),
    }
}

fn make_image(file: &Path, place: &Path, image: Option<PathBuf>, arguments: &str) -> u8 {
    let made = Site::load(file).and_then(|site| bundle::make(&site).map(|bytes| (site, bytes)));
    let (site, bundle) = match made {
        Ok(made) => made,
        Err(mistakes) => return tell_mistakes(&mistakes),
    };
    let image = image.map_or_else(|| built_image(|| false).map(Option::unwrap_or_default), Ok);
    let disk = image.and_then(|image| make_boot_disk(&image, &bundle, arguments).map(|disk| (image, disk)));
    match disk {
        Ok((image, disk)) => {
            let own = [image.clone(), image.with_file_name("BOOTAA64.EFI")];
            keep(file, &site, place, &disk, "the disk", &own)
        }
        Err(error) => complain(&error, status::USAGE),
    }
}

/// Writes what was made of a site to its place, which must not be one of what it was made of: those of the site, or `more`.
fn keep(file: &Path, site: &Site, place: &Path, bytes: &[u8], what: &str, more: &[PathBuf]) -> u8 {
    let more = more.iter().map(PathBuf::as_path);
    if let Some(input) = inputs(file, site).chain(more).find(|input| is_same_file(input, place)) {
        say(&format!("croft: {}: it is read for {what} ({}); write to another file", place.display(), input.display()));
        return status::USAGE;
    }
    let vms = if site.vms.len() == 1 { "1 VM".to_owned() } else { format!("{} VMs", site.vms.len()) };
    let told = format!("{}: {vms}, {}\n", place.display(), size::show(bytes.len() as u64));
    match output::write(place, bytes) {
        Ok(Written::Replaced) => print(&told).map_or_else(|error| unwritable(&error), |()| status::OK),
        // Standard output may be what it was written to.
        Ok(Written::Through) => {
            say(told.trim_end());
            status::OK
        }
        Err(error) => {
            let is_full =
                matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::BrokenPipe);
            say(&format!("croft: {}: cannot be written: {error}", place.display()));
            if is_full { status::INCOMPLETE } else { status::USAGE }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Arguments, CommandFactory};
    use croft::run::WITH_VALUE;

    /// `cargo xtask run` tells by these which of its arguments is the site.
    #[test]
    fn the_options_of_run_that_have_a_value_are_known() {
        let command = Arguments::command();
        let run = command.find_subcommand("run").unwrap();
        let options = run.get_opts().filter(|option| option.get_action().takes_values());
        let mut names: Vec<String> = options.map(|option| format!("--{}", option.get_long().unwrap())).collect();
        let mut known = WITH_VALUE.map(str::to_owned);
        names.sort();
        known.sort();
        assert_eq!(names, known);
    }
}
