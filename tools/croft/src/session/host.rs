//! The emulated host: image, bundle, QEMU.

use super::{Notice, Options, PortBus, Session, Shared, carrier, disks};
use crate::boot_disk;
use crate::bundle;
use crate::output::complain;
use crate::printable;
use crate::site::{Site, SiteError};
use abi::host_arguments::AllOff;
use rustix::process::{Pid, Signal, kill_process_group};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tempfile::{NamedTempFile, TempDir};

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The site, or a file that it names.
    #[error(transparent)]
    Site(#[from] SiteError),
    /// QEMU.
    #[error(transparent)]
    Qemu(#[from] qemu::Error),
    /// The hypervisor's image.
    #[error("{path}: {why}")]
    Image {
        /// Where it should be.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// What the command line names; the site is not to blame.
    #[error("{}: {why}", .path.display())]
    Argument {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file that is to be a disk of the host's, and that the command line names.
    #[error("{}: {why}", .path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The folder for logs, or a file there; the error names it.
    #[error("{0}")]
    Logs(std::io::Error),
    /// A temporary file.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// Why it did not work.
        source: std::io::Error,
    },
}

/// The running host, and the file that it was given.
pub(super) struct Host {
    running: Mutex<qemu::Running>,
    /// Our end of the port for the link.
    port: Option<Arc<PortSocket>>,
    /// The bundle, or the disk that it is on. Read by QEMU when it starts, or while it runs.
    _loaded: NamedTempFile,
}

/// Where QEMU finds the port for the link: a socket in a folder of its own, into which nobody else can look. QEMU connects to it
/// before the machine starts, so that the hypervisor finds it open.
struct PortSocket {
    /// Until QEMU has come.
    listener: Mutex<Option<UnixListener>>,
    folder: TempDir,
    connected: Mutex<Option<UnixStream>>,
}

impl PortSocket {
    fn bind() -> std::io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("croft-").tempdir()?;
        let listener = UnixListener::bind(folder.path().join("link"))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener: Mutex::new(Some(listener)), folder, connected: Mutex::new(None) })
    }

    /// What gives the machine the port. Our windows are of virtio 1, as QEMU's are not by default.
    fn arguments(&self, bus: PortBus) -> Vec<String> {
        // A comma in a value is written twice.
        let path = self.folder.path().join("link").display().to_string().replace(',', ",,");
        let chardev = format!("socket,id=undercroft-link,path={path}");
        let port = "virtserialport,chardev=undercroft-link,name=undercroft.link";
        let device = match bus {
            PortBus::Mmio => "virtio-serial-device,max_ports=2",
            PortBus::Pci => "virtio-serial-pci,max_ports=2",
        };
        let words = ["-global", "virtio-mmio.force-legacy=false", "-device", device];
        let words = words.into_iter().chain(["-chardev", &chardev, "-device", port]);
        words.map(str::to_owned).collect()
    }

    /// Waits for QEMU and takes the port up.
    fn serve(&self, shared: &Arc<Shared>) -> std::io::Result<()> {
        // It is shut at the end of this, whatever comes of it: QEMU's end then shuts too if it was not taken up, and the
        // hypervisor does not take the port for open.
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(listener) = listener else { return Ok(()) };
        let stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && !shared.lock().ended => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(error) => return Err(error),
            }
        };
        stream.set_nonblocking(false)?;
        let (output, ours) = (stream.try_clone()?, stream.try_clone()?);
        *self.connected.lock().unwrap_or_else(PoisonError::into_inner) = Some(ours);
        carrier::attach(shared, stream, output);
        Ok(())
    }
}

impl Host {
    /// Shuts the port. What QEMU has sent by it still comes.
    pub(super) fn shut_port(&self) {
        let Some(port) = &self.port else { return };
        if let Some(stream) = &*port.connected.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    /// How QEMU ended, for a message. `ended` says that its output did, so that it will be gone in a moment.
    pub(super) fn status(&self, ended: bool) -> Option<String> {
        let limit = if ended { Duration::from_secs(3) } else { Duration::ZERO };
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let status = running.wait_for(limit).ok().flatten()?;
        Some(if status.success() { "the host was powered off".to_owned() } else { format!("QEMU ended with {status}") })
    }
}

/// The folder of the whole project: around the current folder, or where this program was built.
fn project() -> Option<PathBuf> {
    let built_from = Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf();
    let here = std::env::current_dir().ok();
    let starts: Vec<PathBuf> = here.into_iter().chain([built_from]).collect();
    let mut folders = starts.iter().flat_map(|start| start.ancestors());
    folders.find(|folder| folder.join("tools/xtask/Cargo.toml").is_file()).map(Path::to_path_buf)
}

/// How long a build that is given up may take to end.
const LAST: Duration = Duration::from_secs(5);
/// How often a build is looked at.
const GLANCE: Duration = Duration::from_millis(50);

/// The image that `cargo xtask build` makes, made now if it is not there. `None` if that was not waited for, since `gives_up` said so.
///
/// # Errors
/// Why there is none.
pub fn built_image(mut gives_up: impl FnMut() -> bool) -> Result<Option<PathBuf>, StartError> {
    let wrong = |path: &Path, why: String| StartError::Image { path: path.display().to_string(), why };
    let Some(project) = project() else {
        let why = "not found, and this is not the project's work tree; name it with --image".to_owned();
        return Err(wrong(Path::new("undercroft.img"), why));
    };
    let image = target(&project).join("undercroft.img");
    if image.is_file() {
        return Ok(Some(image));
    }
    complain(&"croft: building the hypervisor");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["xtask", "build"]).current_dir(&project);
    match until_built(&mut build, &mut gives_up) {
        Ok(None) => Ok(None),
        Ok(Some(status)) if status.success() && image.is_file() => Ok(Some(image)),
        Ok(Some(status)) => Err(wrong(&image, format!("`cargo xtask build` did not make it ({status})"))),
        Err(error) => Err(wrong(&image, format!("`cargo xtask build` cannot be started: {error}"))),
    }
}

/// Runs a build to its end; `None` if it was given up. Then it is told to end, with whatever it has started.
fn until_built(build: &mut Command, gives_up: &mut dyn FnMut() -> bool) -> std::io::Result<Option<ExitStatus>> {
    let mut running = build.process_group(0).spawn()?;
    loop {
        if let Some(status) = running.try_wait()? {
            return Ok(Some(status));
        }
        if gives_up() {
            let group = Pid::from_child(&running);
            // One that the terminal has stopped takes the first of them only when it goes on.
            for signal in [Signal::TERM, Signal::CONT] {
                let _ = kill_process_group(group, signal);
            }
            let end = Instant::now() + LAST;
            while running.try_wait()?.is_none() {
                if Instant::now() >= end {
                    let _ = kill_process_group(group, Signal::KILL);
                    running.wait()?;
                }
                std::thread::sleep(GLANCE);
            }
            return Ok(None);
        }
        std::thread::sleep(GLANCE);
    }
}

/// Where cargo puts what it builds of `project`.
fn target(project: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| project.join("target"), |own| project.join(own))
}

/// What is to be said of an `image` that is older than what it was built from. That is known of one in the folder `target`, into which
/// `project` is built. An image elsewhere says nothing of its source, which may be another version.
fn complaint_of_age(image: &Path, project: &Path, target: &Path) -> Option<String> {
    let is_built_here = image.canonicalize().ok()?.starts_with(target.canonicalize().ok()?);
    let newer = is_built_here.then(|| newer_source(project, image))??;
    let newer = newer.strip_prefix(project).unwrap_or(&newer);
    Some(format!("{} is older than {}; `cargo xtask build` makes it anew", image.display(), newer.display()))
}

/// A file that the hypervisor is built from and that was changed after its image was made.
fn newer_source(project: &Path, image: &Path) -> Option<PathBuf> {
    let changed = |path: &Path| path.metadata().and_then(|about| about.modified()).ok();
    let made = changed(image)?;
    let is_newer = |path: &PathBuf| changed(path).is_some_and(|changed| changed > made);
    // Profiles, versions of crates, the compiler and its flags.
    let about_all = ["Cargo.toml", "Cargo.lock", "rust-toolchain.toml", ".cargo/config.toml"];
    if let Some(newer) = about_all.map(|name| project.join(name)).into_iter().find(is_newer) {
        return Some(newer);
    }
    let mut folders = vec![project.join("core"), project.join("el2")];
    while let Some(folder) = folders.pop() {
        // What cannot be read says nothing of the rest.
        let Ok(entries) = std::fs::read_dir(folder) else { continue };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            // The tests of a crate are not in the image.
            if path.file_stem().is_some_and(|stem| stem == "tests") {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if is_newer(&path) && path.extension().is_some_and(|end| end == "rs" || end == "toml" || end == "ld") {
                return Some(path);
            }
        }
    }
    None
}

/// Bytes for the host in a temporary file.
fn write_temporary(bytes: &[u8], what: &str, suffix: &str) -> Result<NamedTempFile, StartError> {
    let io = |place: &Path| {
        let what = format!(
            "{}: a temporary file for {what} cannot be written (the variable TMPDIR names the folder)",
            place.display()
        );
        |source| StartError::Io { what, source }
    };
    let folder = std::env::temp_dir();
    let file = tempfile::Builder::new().prefix("site-").suffix(suffix).tempfile_in(&folder);
    let file = file.map_err(io(&folder))?;
    std::fs::write(file.path(), bytes).map_err(io(file.path()))?;
    Ok(file)
}

/// Where the loader for UEFI is: beside the image of the hypervisor, where both are built.
fn loader_beside(image: &Path) -> PathBuf {
    image.with_file_name("BOOTAA64.EFI")
}

/// Where Debian's package of UEFI firmware puts it, beside where `cargo xtask setup --all` does.
const INSTALLED_FIRMWARE: &str = "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd";

/// What `--firmware` names: a file, or `uefi` for that of Debian.
///
/// # Errors
/// If it is not there.
pub fn firmware(named: &Path) -> Result<PathBuf, StartError> {
    if named.as_os_str() != "uefi" {
        return match named.is_file() {
            true => Ok(named.to_path_buf()),
            false => Err(StartError::Argument {
                path: named.to_path_buf(),
                why: "there is no such file with firmware; write --firmware uefi for Debian's",
            }),
        };
    }
    let fetched = project().map(|project| project.join(".undercroft/images/QEMU_EFI.fd"));
    let places = fetched.into_iter().chain([PathBuf::from(INSTALLED_FIRMWARE)]);
    places.into_iter().find(|place| place.is_file()).ok_or(StartError::Argument {
        path: INSTALLED_FIRMWARE.into(),
        why: "there is no UEFI firmware; `cargo xtask setup --all` fetches it, and so does Debian's package qemu-efi-aarch64",
    })
}

/// The disk from which firmware boots.
///
/// # Errors
/// A part is not there, or the disk cannot be made.
pub fn make_boot_disk(image: &Path, bundle: &[u8], arguments: &str) -> Result<Vec<u8>, StartError> {
    let read = |path: &Path| {
        let why = |error: std::io::Error| format!("it cannot be read ({error}); `cargo xtask build` makes it");
        std::fs::read(path).map_err(|error| StartError::Image { path: path.display().to_string(), why: why(error) })
    };
    let (loader, image) = (read(&loader_beside(image))?, read(image)?);
    let arguments = format!("{arguments}\n");
    let parts = boot_disk::Parts { loader: &loader, image: &image, bundle, arguments: &arguments };
    boot_disk::make(&parts).map_err(|source| StartError::Io { what: "making the disk to boot from".to_owned(), source })
}

/// The hypervisor's command line.
fn command_line(options: &Options) -> String {
    let mut words = "link=framed".to_owned();
    if options.all_off == AllOff::PowerOff {
        words.push_str(" all-off=poweroff");
    }
    if !options.boot_arguments.is_empty() {
        words.push(' ');
        words.push_str(&options.boot_arguments);
    }
    words
}

/// The machine for this site. `loaded` is the bundle; with firmware, the disk from which it boots.
fn machine(
    site: &Site,
    options: &Options,
    image: PathBuf,
    loaded: &Path,
    port: Option<&PortSocket>,
) -> Result<qemu::Machine, StartError> {
    let host = site.host.as_ref().ok_or_else(|| {
        let hint = "there is no [host]; `croft run` needs one, for example\n[host]\ncpu = \"cortex-a76\"\ncpus = 4\nmemory = \"4G\"";
        site.mistake(0, hint)
    })?;
    // Whatever happens to this process, even a kill that it cannot see, QEMU goes with it.
    let mut extra_args = vec!["-run-with".to_owned(), "exit-with-parent=on".to_owned()];
    extra_args.extend(port.map(|port| port.arguments(options.port_bus)).unwrap_or_default());
    extra_args.extend(disks::arguments(site, options)?);
    extra_args.extend(options.qemu_args.iter().cloned());
    Ok(qemu::Machine {
        cpu: host.cpu.clone(),
        cpus: u32::from(host.cpus),
        memory: u32::try_from(host.memory >> 20).unwrap_or(u32::MAX),
        firmware: options.firmware.clone().map(|flash| qemu::Firmware { flash, disk: loaded.to_path_buf() }),
        initrd: Some(loaded.to_path_buf()),
        append: command_line(options),
        icount: options.icount,
        extra_args,
        ..qemu::Machine::new(image)
    })
}

impl Session {
    /// Bundles `site`, starts its host with the hypervisor, and takes up the link.
    ///
    /// The host lives no longer than the calling thread and the session.
    ///
    /// # Errors
    /// Why it could not be started; nothing is left running then.
    pub fn start(site: &Site, options: &Options) -> Result<Self, StartError> {
        let wrong = |path: &Path, why| Err(StartError::Argument { path: path.to_path_buf(), why });
        let image = match &options.image {
            Some(image) if image.is_file() => image.clone(),
            Some(image) if image.exists() => {
                return wrong(image, "that is no file with an image; `cargo xtask build` makes target/undercroft.img");
            }
            Some(image) => {
                return wrong(image, "there is no such file; `cargo xtask build` makes target/undercroft.img");
            }
            None => built_image(|| false)?.unwrap_or_default(),
        };
        if let Some(project) = project()
            && let Some(complaint) = complaint_of_age(&image, &project, &target(&project))
        {
            complain(&printable::lines(&format!("croft: {complaint}")));
        }
        if let Some(folder) = options.log_dir.as_ref().filter(|folder| folder.exists() && !folder.is_dir()) {
            return wrong(folder, "that is no folder; --log-dir names one, which is made if it is not there");
        }
        let bundle = bundle::make(site)?;
        let loaded = match &options.firmware {
            Some(_) => {
                let disk = make_boot_disk(&image, &bundle, &command_line(options))?;
                write_temporary(&disk, "the disk to boot from", ".disk")?
            }
            None => write_temporary(&bundle, "the bundle", ".bundle")?,
        };
        drop(bundle);
        let port = options.port.then(PortSocket::bind).and_then(|bound| match bound {
            Ok(port) => Some(Arc::new(port)),
            Err(error) => {
                let folder = std::env::temp_dir();
                let text = format!("the link stays on the serial port: no socket in {}: {error}", folder.display());
                let _ = options.listener.as_ref().map(|listener| listener.send(Notice::Remark(text)));
                None
            }
        });
        let machine = machine(site, options, image, loaded.path(), port.as_deref())?;
        let names: Vec<String> = site.vms.iter().map(|vm| vm.name.clone()).collect();
        // Nothing is moved aside for a host that cannot be started.
        qemu::find()?;
        // Before the host: it must not run while an earlier run's logs are moved aside, nor for nothing where that fails.
        let recorder = Self::recorder(&names, options).map_err(StartError::Logs)?;
        let mut running = machine.spawn()?;
        let (output, input) = running.serial()?;
        let mut session = Self::recorded(output, input, names, options, recorder);
        session.wrong_clocks = site.wrong_clocks().map(|(vm, _)| vm.to_owned()).collect();
        if let Some(port) = port.clone() {
            let shared = Arc::clone(&session.shared);
            let listener = options.listener.clone();
            std::thread::spawn(move || {
                // Without QEMU's end there is no port, and the link stays where it is.
                if let Err(error) = port.serve(&shared)
                    && !shared.lock().ended
                {
                    carrier::give_up(&shared);
                    let text = format!("the link stays on the serial port: {error}");
                    let _ = listener.map(|listener| listener.send(Notice::Remark(text)));
                }
            });
        }
        session.host = Some(Host { running: Mutex::new(running), port, _loaded: loaded });
        Ok(session)
    }
}

#[cfg(test)]
mod tests {
    use super::complaint_of_age;
    use std::fs::{self, File};
    use std::time::{Duration, SystemTime};

    /// Also of one that is named, as long as it is known what it was built from.
    #[test]
    fn an_image_that_is_older_than_its_source_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let project = folder.path().join("project");
        let (target, elsewhere) = (project.join("target"), folder.path().join("elsewhere"));
        let now = SystemTime::now();
        let file = |path: &std::path::Path, age: u64| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            File::create(path).unwrap().set_modified(now - Duration::from_secs(age)).unwrap();
        };
        file(&project.join("core/a/src/lib.rs"), 50);
        file(&project.join("el2/b/src/tests/newest.rs"), 1);
        file(&project.join("core/a/src/tests.rs"), 1);
        let images = [target.join("undercroft.img"), target.join("old/any-name.img"), elsewhere.join("undercroft.img")];
        let told = |age| {
            images.iter().for_each(|image| file(image, age));
            images.each_ref().map(|image| complaint_of_age(image, &project, &target))
        };
        assert_eq!(told(10), [None, None, None], "newer than its source");
        file(&project.join("el2/b/src/lib.rs"), 5);
        let [usual, named, foreign] = told(10);
        assert!(usual.unwrap().contains("undercroft.img is older than el2/b/src/lib.rs; `cargo xtask build`"));
        assert!(named.unwrap().contains("any-name.img is older than el2/b/src/lib.rs"));
        assert_eq!(foreign, None, "nobody knows what it was built from");
        file(&project.join("el2/b/src/lib.rs"), 60);
        assert_eq!(told(10), [None, None, None]);
        for name in ["Cargo.toml", "Cargo.lock", "rust-toolchain.toml", ".cargo/config.toml"] {
            file(&project.join(name), 5);
            assert!(
                told(10)[0].as_ref().is_some_and(|told| told.contains(&format!("is older than {name};"))),
                "{name}"
            );
            file(&project.join(name), 60);
        }
        std::os::unix::fs::symlink("nowhere", project.join("core/a/src/broken.rs")).unwrap();
        file(&project.join("el2/b/src/lib.rs"), 5);
        assert!(told(10)[0].is_some(), "one that cannot be looked at hides no other");
    }
}
