//! `croft`: the operator's command line.
#![forbid(unsafe_code)]

use clap::{Parser, Subcommand};
use croft::run::{self, Request};
use croft::session::status;
use croft::site::Site;
use croft::{bundle, size};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const STATUSES: &str = "Exit status:
    0    all is well; with --until-stopped: every VM powered itself off
    1    a VM crashed or was stopped by force, or the hypervisor failed
    2    wrong arguments, or a mistake in the site file or in a file that it names
    3    the emulated host could not be started, or ended under running VMs
  124    the time given with --timeout was up
  128+N  ended by signal N";

const RUN_HELP: &str = "In a terminal, one VM's console is in the foreground; Ctrl-] h shows the keys \
(Ctrl-] n: next VM, Ctrl-] l: log, Ctrl-] q: quit).
Without a terminal, every line is printed with its VM's name, and nothing is read.";

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
    /// Run a site on an emulated host (QEMU), with this terminal attached.
    #[command(after_help = format!("{RUN_HELP}\n\n{STATUSES}"))]
    Run {
        /// The site file; its [host] says what to emulate.
        site: PathBuf,
        /// End everything after this many seconds.
        #[arg(long, value_name = "S", value_parser = seconds)]
        timeout: Option<Duration>,
        /// Return when every VM is off: with status 0 if all powered themselves off.
        #[arg(long)]
        until_stopped: bool,
        /// Keep each console in DIR/<vm>.console (virtio: DIR/<vm>.hvc0) and the log in DIR/hypervisor.log.
        #[arg(long, value_name = "DIR")]
        log_dir: Option<PathBuf>,
        /// Count time in instructions: one a nanosecond, on one thread. Repeatable, and slower.
        #[arg(long)]
        icount: bool,
        /// One more argument for QEMU; may be given often. Write --qemu-arg=-d --qemu-arg=int.
        #[arg(long = "qemu-arg", value_name = "ARG", allow_hyphen_values = true)]
        qemu_args: Vec<String>,
        /// The hypervisor's image, instead of the one that `cargo xtask build` makes.
        #[arg(long, value_name = "FILE")]
        image: Option<PathBuf>,
    },
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds: &f64| *seconds > 0.0);
    seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).ok_or("write a number of seconds".to_owned())
}

fn main() -> ExitCode {
    ExitCode::from(match Arguments::parse().command {
        Order::Bundle { site, output } => make_bundle(&site, &output),
        Order::Run { site, timeout, until_stopped, log_dir, icount, qemu_args, image } => {
            let request = Request { site, timeout, until_stopped, log_dir, icount, qemu_args, image };
            match run::run(&request) {
                Ok(end) => {
                    if let Some(reason) = end.reason() {
                        eprintln!("croft: {reason}");
                    }
                    end.exit_status()
                }
                Err(error) => complain(&error, error.exit_status()),
            }
        }
    })
}

/// Mistakes in a site begin with file and line, as editors and people expect; everything else with the program's name.
fn complain(error: &dyn std::error::Error, number: u8) -> u8 {
    if number == status::USAGE {
        eprintln!("{error}");
    } else {
        eprintln!("croft: {error}");
    }
    number
}

/// Makes the bundle beside its place first, so that a failure leaves no half of one.
fn make_bundle(file: &Path, output: &Path) -> u8 {
    let made = Site::load(file).and_then(|site| bundle::make(&site).map(|bytes| (site, bytes)));
    let (site, bytes) = match made {
        Ok(made) => made,
        Err(error) => return complain(&error, status::USAGE),
    };
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let written = tempfile::Builder::new().permissions(readable()).tempfile_in(folder).and_then(|mut temporary| {
        temporary.write_all(&bytes)?;
        temporary.persist(output).map_err(|error| error.error)?;
        Ok(())
    });
    if let Err(error) = written {
        eprintln!("croft: {}: cannot be written: {error}", output.display());
        return status::USAGE;
    }
    let count = site.vms.len();
    let vms = if count == 1 { "1 VM" } else { "VMs" };
    let vms = if count == 1 { vms.to_owned() } else { format!("{count} {vms}") };
    println!("{}: {vms}, {}", output.display(), size::show(bytes.len() as u64));
    status::OK
}

/// What a file usually may: temporary files are private, a bundle is not.
fn readable() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o644)
}
