//! Debian's archive, used without root and without touching the machine's own package state.
//!
//! `apt-get` is told to keep its lists, its cache and its status file in a folder of ours. Then it does all the
//! hard parts as usual: it checks the archive's signatures against Debian's keyring, and each package against the
//! SHA-256 in the signed index. The status file is empty, so a package's dependencies are all fetched, whatever this
//! machine has. Nothing is ever installed: packages are unpacked into folders.
//!
//! The archive's address is the one that the machine itself is configured with, unless the variable
//! `UNDERCROFT_DEBIAN_MIRROR` names one.

use super::progress::{ProgressLine, run_watched};
use crate::tree::{Tree, output};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Overrides the archive's address, for machines that have none (Ubuntu), and for archives of old packages.
const MIRROR: &str = "UNDERCROFT_DEBIAN_MIRROR";

/// Some suites of the archive for one architecture, with their own lists and cache.
#[derive(Debug)]
pub(crate) struct Archive {
    folder: PathBuf,
    config: PathBuf,
}

/// A package in the cache: its file, whose hash has been checked.
#[derive(Debug)]
pub(crate) struct Package {
    /// Where the package file is.
    pub(crate) file: PathBuf,
}

impl Archive {
    /// Fetches the lists of these suites. Everything lands in `.undercroft/apt/<name>`.
    pub(crate) fn open(tree: &Tree, name: &str, architecture: &str, suites: &[&str]) -> Result<Archive> {
        check_machine()?;
        Archive::open_at(&mirror()?, tree.store("apt").join(name), architecture, suites)
    }

    /// As [`Archive::open`], of the archive at `mirror`, in this folder.
    fn open_at(mirror: &str, folder: PathBuf, architecture: &str, suites: &[&str]) -> Result<Archive> {
        for below in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(folder.join(below)).with_context(|| format!("creating {}", folder.display()))?;
        }
        let lines = suites.iter().map(|suite| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"));
        fs::write(folder.join("sources.list"), lines.collect::<String>())?;
        fs::write(folder.join("status"), "")?;
        let config = folder.join("apt.conf");
        fs::write(&config, configuration(&folder, architecture))?;
        let archive = Archive { folder, config };
        println!("  reading the package lists of {} ({architecture})", suites.join(" and "));
        // Without the option, lists that cannot be fetched are a warning, and what misses them fails later, for odd reasons.
        let mut update = archive.apt("apt-get");
        update.args(["-q", "-o", "APT::Update::Error-Mode=any", "update"]);
        output(&mut update).with_context(|| {
            format!(
                "fetching Debian's package lists from {mirror}: is this machine online? {MIRROR} names another archive"
            )
        })?;
        Ok(archive)
    }

    /// The version that the lists have of a package: the one with this prefix if one is asked for, else the newest.
    pub(crate) fn version(&self, package: &str, prefix: &str) -> Result<Option<String>> {
        let lines = output(self.apt("apt-cache").args(["madison", package]))?;
        let versions = lines.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim);
        Ok(versions.into_iter().find(|version| version.starts_with(prefix)).map(str::to_owned))
    }

    /// The packages with the files of the kernel that a meta-package stands for.
    pub(crate) fn kernel(&self, package: &str) -> Result<KernelPackages> {
        let depends = self.depends(package)?;
        let image = depends.iter().find(|name| name.starts_with("linux-image-"));
        let image = image.with_context(|| format!("{package} depends on no linux-image-..."))?;
        Ok(KernelPackages::of(image, &self.depends(image)?))
    }

    /// What a package depends on; of alternatives the first.
    fn depends(&self, package: &str) -> Result<Vec<String>> {
        let text = output(self.apt("apt-cache").args(["show", "--no-all-versions", package]))?;
        let depends = text.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
        Ok(depends.split(',').filter_map(|one| one.split_whitespace().next()).map(str::to_owned).collect())
    }

    /// Fetches these packages, without what they depend on.
    pub(crate) fn download(&self, packages: &[&str]) -> Result<Vec<Package>> {
        self.fetch(&["download"], packages)
    }

    /// Fetches these packages from `suite` with everything they depend on.
    pub(crate) fn download_closure(&self, suite: &str, packages: &[&str]) -> Result<Vec<Package>> {
        self.fetch(&["install", "--download-only", "-y", "--no-install-recommends", "-t", suite], packages)
    }

    /// Runs `apt-get` twice: to learn what will come and with which hash, and to get it. Then checks the hashes again.
    fn fetch(&self, verb: &[&str], packages: &[&str]) -> Result<Vec<Package>> {
        // With a cache that stays empty: apt does not name the files that it finds there, after a setup that was cut short.
        let empty = self.folder.join("empty");
        fs::create_dir_all(empty.join("partial"))?;
        let mut listing = self.apt("apt-get");
        listing.current_dir(&empty).arg("-o").arg(format!("Dir::Cache::archives={}", empty.display()));
        let listing = output(listing.args(["-qq", "--print-uris"]).args(verb).args(packages))?;
        let entries = parse_uris(&listing);
        ensure!(!entries.is_empty(), "apt-get names no file for {}", packages.join(" "));
        let bytes: u64 = entries.iter().map(|entry| entry.bytes).sum();
        println!("  fetching {} package files, {:.1} MB", entries.len(), bytes as f64 / 1e6);
        let archives = self.folder.join("archives");
        let progress = ProgressLine::new("  ", bytes);
        let arrived = || entries.iter().map(|entry| entry.arrived(&archives)).sum();
        run_watched(self.apt("apt-get").arg("-q").args(verb).args(packages), progress, arrived)
            .context("fetching packages")?;
        check_hashes(&archives, &entries)?;
        Ok(entries.into_iter().map(|entry| Package { file: archives.join(entry.name) }).collect())
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").current_dir(self.folder.join("archives"));
        command.arg("-c").arg(&self.config).args(["-o", "Acquire::ForceHash=SHA256"]);
        command
    }
}

/// Where a kernel's files are. Up to Linux 6 they are all in `linux-image-<version>`; from 7 on that one is empty, and depends
/// on `linux-binary-...` with the kernel and `linux-modules-...`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct KernelPackages {
    /// The package with the kernel itself.
    pub(crate) image: String,
    /// That with its modules.
    pub(crate) modules: String,
}

impl KernelPackages {
    /// Those of `linux-image-<version>`, which depends on these.
    fn of(image: &str, depends: &[String]) -> Self {
        let find = |prefix: &str| depends.iter().find(|name| name.starts_with(prefix)).map_or(image, |name| name);
        Self { image: find("linux-binary-").to_owned(), modules: find("linux-modules-").to_owned() }
    }
}

impl Package {
    /// Unpacks the whole package below `folder`.
    pub(crate) fn unpack(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        output(Command::new("dpkg-deb").arg("-x").arg(&self.file).arg(folder)).map(drop)
    }

    /// Unpacks only what matches `pattern` (`./boot/vmlinuz-*`), a pattern of `tar`'s.
    pub(crate) fn unpack_some(&self, folder: &Path, pattern: &str) -> Result<()> {
        fs::create_dir_all(folder)?;
        let mut packed = Command::new("dpkg-deb");
        let mut packed = packed.arg("--fsys-tarfile").arg(&self.file).stdout(Stdio::piped()).spawn()?;
        let stream = packed.stdout.take().context("dpkg-deb's output")?;
        let mut tar = Command::new("tar");
        tar.arg("-x").arg("-C").arg(folder).args(["--wildcards", pattern]).stdin(stream);
        let done = output(&mut tar).with_context(|| format!("no {pattern} in {}", self.file.display()));
        packed.wait()?;
        done.map(drop)
    }
}

/// One file that `apt-get --print-uris` names.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    name: String,
    bytes: u64,
    sha256: String,
}

impl Entry {
    /// How many of its bytes are there.
    fn arrived(&self, archives: &Path) -> u64 {
        let whole = archives.join(&self.name);
        let part = archives.join("partial").join(&self.name);
        fs::metadata(whole).or_else(|_| fs::metadata(part)).map_or(0, |about| about.len())
    }
}

/// Reads lines of the form `'address' file size SHA256:hash`.
fn parse_uris(listing: &str) -> Vec<Entry> {
    let entry = |line: &str| {
        let mut words = line.strip_prefix('\'')?.split_whitespace().skip(1);
        let (name, bytes, hash) = (words.next()?, words.next()?, words.next()?);
        let sha256 = hash.strip_prefix("SHA256:")?.to_owned();
        Some(Entry { name: name.to_owned(), bytes: bytes.parse().ok()?, sha256 })
    };
    listing.lines().filter_map(entry).collect()
}

/// Checks the files once more against the hashes of the signed index: what is in the cache may be old or damaged.
fn check_hashes(folder: &Path, entries: &[Entry]) -> Result<()> {
    let mut check = Command::new("sha256sum");
    let mut check =
        check.args(["--check", "--quiet", "--strict", "-"]).current_dir(folder).stdin(Stdio::piped()).spawn()?;
    let mut list = check.stdin.take().context("sha256sum's input")?;
    for entry in entries {
        writeln!(list, "{}  {}", entry.sha256, entry.name)?;
    }
    drop(list);
    ensure!(check.wait()?.success(), "a package file in {} is damaged; remove it and run again", folder.display());
    Ok(())
}

/// Names what the machine lacks before anything is tried.
fn check_machine() -> Result<()> {
    let finds = |program: &str| Command::new(program).arg("--version").output().is_ok();
    let tools = [("apt-get", "apt"), ("dpkg-deb", "dpkg"), ("tar", "tar"), ("sha256sum", "coreutils")];
    for (program, package) in tools {
        ensure!(
            finds(program),
            "{program} is missing: setup needs a Debian or Ubuntu machine with the package {package}"
        );
    }
    ensure!(
        Path::new(KEYRING).is_file(),
        "{KEYRING} is missing: install Debian's keys (sudo apt install debian-archive-keyring)"
    );
    Ok(())
}

/// The address of Debian's archive: the machine's own.
fn mirror() -> Result<String> {
    if let Some(named) = std::env::var(MIRROR).ok().filter(|named| !named.trim().is_empty()) {
        return address(&named).with_context(|| format!("the variable {MIRROR} is {named:?}"));
    }
    // With lists there, apt knows which of its archives is Debian's main one.
    let format = "$(ORIGIN)|$(LABEL)|$(REPO_URI)";
    let known = output(Command::new("apt-get").args(["indextargets", "--format", format])).unwrap_or_default();
    if let Some(mirror) = known.lines().find_map(|line| line.strip_prefix("Debian|Debian|")) {
        return Ok(mirror.to_owned());
    }
    // On a machine that has fetched no lists yet, the addresses of the lists say it.
    let wanted = output(Command::new("apt-get").args(["update", "--print-uris"])).unwrap_or_default();
    match wanted.lines().find_map(main_archive) {
        Some(mirror) => Ok(mirror),
        None => bail!(
            "this machine's apt knows no archive of Debian's (Ubuntu's do not); put the address of one of Debian's mirrors \
             into the variable {MIRROR}"
        ),
    }
}

/// An address as apt takes it. A bare host's name is none: apt would only say that it cannot be reached.
fn address(named: &str) -> Result<String> {
    let named = named.trim();
    let scheme = named.split_once(':').map(|(scheme, rest)| (scheme, rest.starts_with("//") || scheme == "file"));
    let is_scheme =
        |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+');
    let is_good = scheme.is_some_and(|(scheme, is_followed)| is_scheme(scheme) && is_followed);
    ensure!(is_good && !named.contains(char::is_whitespace), "that is no address; write http:// and the mirror's name");
    Ok(named.to_owned())
}

/// The archive's address in a line of `apt-get update --print-uris`, if it is Debian's main archive.
fn main_archive(line: &str) -> Option<String> {
    let address = line.strip_prefix('\'')?.split('\'').next()?;
    let (archive, suite) = address.split_once("/dists/")?;
    let main = archive.ends_with("/debian") && !suite.contains("security");
    main.then(|| format!("{archive}/"))
}

/// apt's configuration that keeps it inside `folder`.
fn configuration(folder: &Path, architecture: &str) -> String {
    let folder = folder.display();
    format!(
        "Dir::State \"{folder}\";\nDir::State::lists \"{folder}/lists\";\nDir::State::status \"{folder}/status\";\n\
         Dir::Cache \"{folder}\";\nDir::Cache::archives \"{folder}/archives\";\n\
         Dir::Etc::sourcelist \"{folder}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
         Dir::Etc::preferences \"/dev/null\";\nDir::Etc::preferencesparts \"/dev/null\";\n\
         APT::Architecture \"{architecture}\";\nAPT::Architectures {{ \"{architecture}\"; }};\n\
         Acquire::Languages \"none\";\nAcquire::Retries \"3\";\n\
         Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
         Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled \"false\";\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_apt_prints() {
        let listing = "'http://x.example/debian/pool/q.deb' q_1%3a2_amd64.deb 123 SHA256:ab12\nNeed to get\n";
        let expected = Entry { name: "q_1%3a2_amd64.deb".into(), bytes: 123, sha256: "ab12".into() };
        assert_eq!(parse_uris(listing), [expected]);
        assert_eq!(parse_uris("'http://x.example/q.deb' q.deb 123 MD5Sum:ab\n"), [], "a weak hash is no hash");
    }

    #[test]
    fn a_kernel_may_be_in_several_packages() {
        let of = |image: &str, depends: &[&str]| {
            let depends: Vec<String> = depends.iter().map(|name| (*name).to_owned()).collect();
            let KernelPackages { image, modules } = KernelPackages::of(image, &depends);
            (image, modules)
        };
        let one = of("linux-image-6.12.1-arm64", &["kmod", "linux-base"]);
        assert_eq!(one, ("linux-image-6.12.1-arm64".into(), "linux-image-6.12.1-arm64".into()));
        let two = of(
            "linux-image-7.2-arm64",
            &["dracut", "linux-base-7.2-arm64", "linux-binary-7.2-arm64", "linux-modules-7.2-arm64"],
        );
        assert_eq!(two, ("linux-binary-7.2-arm64".into(), "linux-modules-7.2-arm64".into()));
    }

    #[test]
    fn finds_the_main_archive() {
        let line = |suite: &str| format!("'http://x.example/debian/dists/{suite}/InRelease' x 0 ");
        assert_eq!(main_archive(&line("trixie")).as_deref(), Some("http://x.example/debian/"));
        assert_eq!(main_archive(&line("trixie-security")), None);
        assert_eq!(main_archive("'http://x.example/ubuntu/dists/noble/InRelease' x 0 "), None);
    }

    #[test]
    fn a_mirror_is_an_address() {
        for good in [
            "http://x.example/debian",
            " https://x.example:8080/debian/\n",
            "file:/srv/debian",
            "tor+http://x.example/",
        ] {
            assert_eq!(address(good).expect("an address"), good.trim());
        }
        for bad in
            ["x.example/debian", "x.example:8080/debian", "//x.example", "http:x.example", "http://x.example/a b", ":"]
        {
            let said = format!("{:#}", address(bad).expect_err(bad));
            assert!(said.contains("write http://"), "{said}");
        }
    }

    #[test]
    fn an_archive_that_cannot_be_reached_is_named_as_the_cause() {
        let folder = tempfile::tempdir().expect("a folder");
        let nowhere = format!("file:{}/nothing-here/", folder.path().display());
        let error =
            Archive::open_at(&nowhere, folder.path().join("lists"), "arm64", &["trixie"]).expect_err("no archive");
        let text = format!("{error:#}");
        assert!(text.contains("nothing-here") && text.contains(MIRROR) && text.contains("update"), "{text}");
    }

    #[test]
    fn finds_damage() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("a"), "").expect("written");
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let entry = |sha256: &str| [Entry { name: "a".into(), bytes: 0, sha256: sha256.into() }];
        assert!(check_hashes(folder.path(), &entry(empty)).is_ok());
        assert!(check_hashes(folder.path(), &entry(&empty.replace('e', "f"))).is_err());
    }
}
