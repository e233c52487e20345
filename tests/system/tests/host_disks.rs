//! Disks on the host's disks: what guests write and flush is in the image, also when the host's power goes; errors reach the request that they
//! are of; and nobody has what another may write.

use anyhow::{Context, Result, ensure};
use croft::control::{self, About, Order, Place};
use croft::session::PortBus;
use croft::site::{Backend, Disk, Disks, HostPart, Lines, Site, Vm};
use croft::statistics;
use qemu::Machine;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use system::file_system::{FILES, file_system, output, recover, sum_of, sums_of};
use system::host::{Host, Run, Turn};
use system::write_log::{Told, WriteLog, write_all};
use system::{BOOT, SOON, guest, place, scenario};

fn main() -> ExitCode {
    system::run(vec![
        scenario("host_disks::ext4_mmio", || ext4(PortBus::Mmio)),
        scenario("host_disks::ext4_pci", || ext4(PortBus::Pci)),
        scenario("host_disks::refused", refused),
        scenario("host_disks::errors", errors),
        scenario("host_disks::shared_lines", shared_lines),
        scenario("host_disks::who_uses_a_disk_pays_for_it", paid),
        scenario("host_disks::power_cuts", power_cuts),
    ])
}

/// A part of a host's disk, as a guest's.
fn part(disk: &str, (offset, size): (u64, u64), read_only: bool, serial: &str) -> Disk<String, PathBuf> {
    let part = HostPart { disk: disk.to_owned(), offset, size, read_only };
    Disk { backend: Backend::Host(part), serial: serial.to_owned() }
}

/// All of one, to be written.
fn whole(disk: &str, serial: &str) -> Disk<String, PathBuf> {
    part(disk, (0, 0), false, serial)
}

/// A Linux guest with the driver, and with these disks.
fn with(name: &str, disks: Vec<Disk<String, PathBuf>>, folder: &Path) -> Result<Vm> {
    let mut vm = guest::linux_with_disks(name, 2, "quiet", folder)?;
    vm.disks = Disks::of(disks).context("too many disks")?;
    Ok(vm)
}

/// What its vCPUs have paid, in microseconds, of what others have done for the VM.
fn paid_by(run: &Run, name: &str) -> Result<u64> {
    let json = statistics::to_json(&run.statistics(SOON)?)?;
    let vms = json["vms"].as_array().context("no VMs")?;
    let vm = vms.iter().find(|vm| vm["name"] == name).context("no such VM")?;
    vm["paid_microseconds"].as_u64().context("no number")
}

/// The thread of a host's disk works on the time of the VMs whose requests it answers, and of no other. What their consoles cost is paid, too, so
/// each command prints as much as the others.
fn paid() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let raw = folder.path().join("raw.img");
    fs::write(&raw, vec![b'r'; 8 << 20])?;
    let user = with("user", vec![whole("virtio0", "raw")], folder.path())?;
    let host = Host { disks: vec![raw], ..Host::default() };
    let run = host.start_and_stay(vec![user, with("other", vec![], folder.path())?])?;
    // The hypervisor hears nothing before it is there.
    run.ask("user", "echo up $((6*7))", "\nup 42")?;
    let single = "echo 0 > /sys/block/vda/queue/read_ahead_kb; echo single $((6*7))";
    run.ask("user", single, "\nsingle 42")?;
    let during = |from: &str| {
        let before = [paid_by(&run, "user")?, paid_by(&run, "other")?];
        let read = format!("dd if=/dev/{from} of=/dev/null bs=4096 count=2048 2>/dev/null; echo read $?");
        run.ask("user", &read, "\nread 0")?;
        let [user, other] = before;
        anyhow::Ok([paid_by(&run, "user")? - user, paid_by(&run, "other")? - other])
    };
    during("zero")?;
    let [nothing, _] = during("zero")?;
    let [much, others] = during("vda")?;
    println!("paid for the console {nothing} us, with 2,048 requests {much} us; the other VM {others} us");
    ensure!(much > 5 * nothing && much > 5 * others, "{nothing} us, {much} us, {others} us");
    run.check_log()
}

/// The sum of a file.
fn sum(path: &Path) -> Result<String> {
    let sum = output(Command::new("sha256sum").arg(path))?;
    Ok(sum.split(' ').next().context("a sum")?.to_owned())
}

/// A guest has an ext4 file system on a host's disk, and a part of another one, of which a second guest sees all. What the first has
/// written and flushed is in the files when the host was killed, and nothing beside its part is. Such a VM is not saved, and says why.
fn ext4(bus: PortBus) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (image, raw) = (file_system(folder.path(), "root", 1)?, folder.path().join("raw.img"));
    fs::write(&raw, vec![b'r'; 8 << 20])?;
    let disks = vec![whole("virtio0", "root"), part("serial:disk1", (1 << 20, 1 << 20), false, "part")];
    let writer = with("writer", disks, folder.path())?;
    let reader = with("reader", vec![part("virtio1", (0, 0), true, "all")], folder.path())?;
    let host = Host { disks: vec![image.clone(), raw.clone()], disk_bus: bus, port: true, ..Host::default() };
    let run = host.start_and_stay(vec![writer, reader])?;
    run.ask("writer", "echo is $(cat /sys/block/vda/serial) $(cat /sys/block/vda/ro)", "\nis root 0\r\n")?;
    run.ask("writer", "echo is $(cat /sys/block/vdb/serial) $(cat /sys/block/vdb/size)", "\nis part 2048\r\n")?;
    run.ask("writer", "cat /sys/block/vda/queue/write_cache", "\nwrite back\r\n")?;
    run.ask("reader", "echo is $(cat /sys/block/vda/ro) $(cat /sys/block/vda/size)", "\nis 1 16384\r\n")?;
    run.ask("reader", "sha256sum /dev/vda", &format!("\n{} ", sum(&raw)?))?;
    run.ask("reader", "dd if=/dev/zero of=/dev/vda count=1 2>/dev/null; echo wrote $?", "\nwrote 1")?;
    run.ask("writer", "mkdir -p /mnt; mount -t ext4 /dev/vda /mnt; echo mounted $?", "\nmounted 0")?;
    run.ask("writer", "cd /mnt; sha256sum -c SUMS | grep -c OK", &format!("\n{FILES}\r\n"))?;
    let change =
        "dd if=/dev/urandom of=/mnt/new bs=64k count=48 2>/dev/null; rm /mnt/file-1; fstrim /mnt; echo changed $?";
    run.ask("writer", change, "\nchanged 0")?;
    // Many requests at once.
    let all = "echo 3 > /proc/sys/vm/drop_caches; for i in 1 2 3 4; do cat /mnt/* /dev/vdb | wc -c & done; wait; echo read $?";
    run.ask("writer", all, "\nread 0")?;
    let fill = "tr '\\0' w < /dev/zero | dd of=/dev/vdb bs=64k count=16 iflag=fullblock conv=fsync 2>/dev/null; echo filled $?";
    run.ask("writer", fill, "\nfilled 0")?;
    run.ask(
        "writer",
        "dd if=/dev/zero of=/dev/vdb bs=512 count=1 seek=2048 2>/dev/null; echo beyond $?",
        "\nbeyond 1",
    )?;
    // A range of its part, of which the host's disk gives back what it takes: zeros are there then.
    run.ask("writer", "blkdiscard -o 65536 -l 131072 /dev/vdb; echo discarded $?", "\ndiscarded 0")?;
    let said = run.ask("writer", "cd /; sync; sha256sum /mnt/new; echo synced $((6*7))", "\nsynced 42")?;
    let written = said.split_whitespace().find(|word| word.len() == 64).context("a sum")?.to_owned();
    run.ask("writer", "dmesg | grep -c 'error.*vda'", "\n0\r\n")?;
    run.ask("reader", "echo 3 > /proc/sys/vm/drop_caches; head -c 1048577 /dev/vda | tail -c 1; echo", "\nw\r\n")?;

    let server = control::serve(run.session(), About::default(), &Place::at(&folder.path().join("place"))?)?;
    let save = Order::Save { vm: "writer".to_owned(), file: folder.path().join("saved"), compress: false };
    let refused = control::perform(control::connect(&folder.path().join("place"))?, &save, |_| ());
    let refused = refused.err().context("it is saved")?.to_string();
    ensure!(refused.contains("its disk root is on a disk of the host's, which may change meanwhile"), "{refused}");
    run.ask("writer", "echo still $((6*7))", "\nstill 42")?;
    run.check_log()?;
    // A reset finds the disk as it was written.
    run.console("writer")?.send("reboot -f\n")?;
    run.console("writer")?.expect("cpus online", BOOT)?;
    run.ask("writer", "mkdir -p /mnt; mount -t ext4 /dev/vda /mnt; sha256sum /mnt/new", &written)?;
    drop(server);
    drop(run);

    let bytes = fs::read(&raw)?;
    const DISCARDED: std::ops::Range<usize> = (1 << 20) + 65536..(1 << 20) + 65536 + 131_072;
    let expected = |at| if DISCARDED.contains(&at) { 0 } else { if at >> 20 == 1 { b'w' } else { b'r' } };
    let is_right = bytes.iter().enumerate().all(|(at, &byte)| byte == expected(at));
    ensure!(is_right, "the guest's part, and nothing else, is written");
    recover(&image)?;
    ensure!(sum_of(&image, "new")? == written, "what was synced is in the image");
    ensure!(sum_of(&image, "file-1")? == sum(Path::new("/dev/null"))?, "and what was removed is not");
    Ok(())
}

/// What gives QEMU a disk by its own arguments, made of these properties.
fn by_hand(number: usize, node: &str) -> Vec<String> {
    let device = format!("virtio-blk-device,drive=d{number},serial=disk{number},bus=virtio-mmio-bus.{number}");
    let node = format!("node-name=d{number},{node}");
    ["-global", "virtio-mmio.force-legacy=false", "-blockdev", &node, "-device", &device].map(str::to_owned).to_vec()
}

/// What gives QEMU a disk that is this file.
fn plain(number: usize, path: &Path, more: &str) -> Vec<String> {
    by_hand(number, &format!("driver=raw,file.driver=file,file.filename={}{more}", path.display()))
}

/// A VM whose disk is not there, or could be written by another as well, is not made, and the log says why; the others run. `croft` refuses
/// such sites first, so they are given to the hypervisor without it.
fn refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("a.img");
    fs::write(&image, vec![b'a'; 4 << 20])?;
    let vm = |name: &str, disks: Vec<Disk<String, PathBuf>>| -> Result<Vm> {
        let disks = Disks::of(disks).context("too many disks")?;
        Ok(Vm { disks, ..guest::payload(name, "hello", 1, "")? })
    };
    let vms = vec![
        vm("first", vec![part("virtio0", (0, 2 << 20), false, "root")])?,
        vm("second", vec![part("serial:disk0", (1 << 20, 0), false, "data")])?,
        vm("third", vec![part("virtio0", (2 << 20, 1 << 20), false, "x"), whole("virtio7", "y")])?,
        vm("fourth", vec![part("virtio0", (2 << 20, 4 << 20), false, "x")])?,
        // What the third would have had is free.
        vm("fifth", vec![part("virtio0", (2 << 20, 0), false, "x"), part("virtio0", (0, 0), true, "all")])?,
        vm("sixth", vec![whole("virtio1", "x")])?,
        vm("seventh", vec![part("virtio2", (512, 0), true, "x")])?,
        // A disk that cannot be used is not replaced by the next one.
        vm("eighth", vec![whole("virtio3", "x")])?,
        vm("ninth", vec![part("virtio4", (0, 0), true, "x")])?,
    ];
    let site = Site { file: "site".into(), host: None, vms, lines: Lines::default() };
    let bundle = folder.path().join("site.bundle");
    fs::write(&bundle, croft::bundle::make(&site)?)?;
    let mut machine = Machine::new(place::hypervisor()?);
    machine.cpu = "cortex-a76".to_owned();
    machine.append = "all-off=poweroff".to_owned();
    machine.initrd = Some(bundle);
    machine.extra_args = vec!["-run-with".to_owned(), "exit-with-parent=on".to_owned()];
    let large = plain(2, &image, ",file.locking=off,read-only=on").into_iter();
    let large = large.map(|word| word.replace(",serial=", ",logical_block_size=4096,physical_block_size=4096,serial="));
    // The file has several users, of which one writes.
    machine.extra_args.extend(plain(0, &image, ",file.locking=off"));
    machine.extra_args.extend(plain(1, &image, ",file.locking=off,read-only=on"));
    machine.extra_args.extend(large);
    let unusable = plain(3, &image, ",file.locking=off,read-only=on").into_iter();
    machine.extra_args.extend(unusable.map(|word| word.replace(",serial=", ",queue-size=64,serial=")));
    machine.extra_args.extend(plain(4, &image, ",file.locking=off,read-only=on"));
    let _turn = Turn::take()?;
    let mut running = machine.spawn()?;
    let transcript = running.console()?.expect_end(SOON)?;
    let expected = [
        "ERROR: second: disk data: disk root of first may write to the same part of virtio0",
        "ERROR: third: disk x: another disk of the VM cannot be had",
        "ERROR: fourth: disk x: virtio0 has 4194304 bytes, and the part of it would begin at 2097152 and have 4194304",
        "ERROR: sixth: disk x: virtio1 cannot be written; add read-only = true",
        "ERROR: seventh: disk x: virtio2 has blocks of 4096 bytes, and a part of it begins and ends with one",
        "WARN: the host's disk virtio3 at 0xa000600 is not used: a queue is too small, or there is no memory for it",
        "ERROR: eighth: disk x: virtio3 is not used, as the log says",
        "[ninth] payload: 1 passed",
        "the host's disk virtio1 at 0xa000200: 4096 KiB, blocks of 512 bytes, serial \"disk1\", read-only",
        "[first] payload: 1 passed",
        "[fifth] payload: 1 passed",
    ];
    for line in expected {
        ensure!(transcript.contains(line), "{line} is not in what it says:\n{transcript}");
    }
    ensure!(transcript.matches("ERROR: ").count() == 6, "{transcript}");
    Ok(())
}

/// Errors of the host's disk are the guest's I/O errors, of the requests that they are of: a write, a read, a flush. Other requests, and
/// another guest on the same disk, notice nothing.
fn errors() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let images = ["a", "b"].map(|name| folder.path().join(format!("{name}.img")));
    for image in &images {
        fs::write(image, vec![b'a'; 4 << 20])?;
    }
    let bad = |number: usize, rules: &[(&str, u64)]| {
        let path = images[number].display();
        let mut node = format!("driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename={path}");
        for (index, (kind, sector)) in rules.iter().enumerate() {
            let rule = format!("file.inject-error.{index}");
            node += &format!(",{rule}.event=none,{rule}.iotype={kind},{rule}.errno=5");
            if *sector > 0 {
                node += &format!(",{rule}.sector={sector}");
            }
        }
        by_hand(number, &node)
    };
    let qemu_args = [bad(0, &[("write", 2048), ("read", 1024)]), bad(1, &[("flush", 0)])].concat();
    let one = with("one", vec![part("virtio0", (0, 2 << 20), false, "a"), whole("virtio1", "b")], folder.path())?;
    let other = with("other", vec![part("virtio0", (2 << 20, 0), false, "a")], folder.path())?;
    let run = Host::default().start_with_qemu(vec![one, other], qemu_args)?;
    let direct = |command: &str| format!("{command} 2>/dev/null; echo ended $?");
    let write = |at: u32| direct(&format!("dd if=/dev/zero of=/dev/vda bs=4096 count=1 seek={at} conv=fsync"));
    run.ask("one", &write(255), "\nended 0")?;
    run.ask("one", &write(256), "\nended 1")?;
    run.ask("one", &write(257), "\nended 0")?;
    // Linux reads ahead, but no further than from the beginning of what is left out here.
    let read = |at: u32| direct(&format!("dd if=/dev/vda of=/dev/null bs=4096 count=1 skip={at}"));
    run.ask("one", &read(128), "\nended 1")?;
    run.ask("one", &read(300), "\nended 0")?;
    run.ask("other", &write(0), "\nended 0")?;
    run.ask("one", "dmesg | grep -q 'I/O error, dev vda, sector 2048'; echo told $?", "\ntold 0")?;
    run.ask("one", &direct("dd if=/dev/zero of=/dev/vdb bs=4096 count=1 conv=fsync"), "\nended 1")?;
    run.ask("one", "dmesg | grep -q 'I/O error, dev vdb.*phys_seg 0'; echo told $?", "\ntold 0")?;
    run.ask("other", "dmesg | grep -c 'I/O error'", "\n0\r\n")?;
    run.check_log()
}

/// How many power cuts are tried of what one guest wrote.
const CUTS: usize = 50;
/// How many files it writes before the host is killed.
const ROUNDS: usize = 30;
/// Where its marks begin on the disk, behind the file system.
const MARKS: u64 = 24 << 20;

/// Numbers that this one begins, as random as they have to be here.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end.max(1)
    }
}

/// A guest writes files, flushes each, and then writes the file's number to another part of the same disk. All that the host's disk was told is
/// logged. Of that log the power is cut at many places: what was flushed before is on the disk then, and of what was written since, any of it.
/// Each time the file system is consistent, and has all files whose numbers were written before.
fn power_cuts() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let seed = clock.as_nanos() as u64 | 1;
    println!("# power_cuts: seed {seed}");
    let image = file_system(folder.path(), "root", seed)?;
    let at = |name: &str| folder.path().join(name);
    let (before, log, cut) = (at("before.img"), at("writes.log"), at("cut.img"));
    fs::OpenOptions::new().write(true).open(&image)?.set_len(MARKS + (1 << 20))?;
    fs::copy(&image, &before)?;
    fs::write(&log, [])?;
    let node = format!(
        "driver=blklogwrites,file.driver=file,file.filename={},log.driver=file,log.filename={}",
        image.display(),
        log.display()
    );
    let disks = vec![part("virtio0", (0, MARKS), false, "root"), part("virtio0", (MARKS, 0), false, "marks")];
    let run = Host::default().start_with_qemu(vec![with("writer", disks, folder.path())?], by_hand(0, &node))?;
    run.ask("writer", "mkdir -p /mnt; mount -t ext4 /dev/vda /mnt; cd /mnt; echo mounted $?", "\nmounted 0")?;
    let rounds = "n=0; while :; do n=$((n+1)); dd if=/dev/urandom of=f$n bs=4k count=$((n%13+1)) conv=fsync 2>/dev/null || break; \
                  s=$(sha256sum < f$n); echo $n | dd of=/dev/vdb bs=512 count=1 conv=sync,fsync 2>/dev/null || break; \
                  echo \"kept $n $s\"; done";
    run.console("writer")?.expect("# ", SOON)?;
    run.console("writer")?.send(format!("{rounds}\n"))?;
    // The one behind the last that counts: of the line that is waited for more may be still to come.
    run.console("writer")?.expect(&format!("kept {} ", ROUNDS + 1), BOOT)?;
    let said = run.console("writer")?.transcript();
    drop(run);
    let lines = said.split('\n').filter_map(|line| line.trim_end_matches('\r').strip_prefix("kept "));
    let kept =
        lines.filter_map(|line| line.split_once(' ')).map(|(_, sum)| sum.trim_end_matches([' ', '-']).to_owned());
    let sums: Vec<String> = kept.take(ROUNDS).collect();
    ensure!(sums.len() == ROUNDS && sums.iter().all(|sum| sum.len() == 64), "{said}");

    let log = WriteLog::read(&log)?;
    let told = log.told()?;
    let flushes = told.iter().filter(|told| **told == Told::Flush).count();
    ensure!(flushes >= 2 * ROUNDS, "only {flushes} flushes came to the host's disk");
    let mut random = Random(seed);
    let mut places: Vec<usize> = (0..CUTS).map(|_| random.below(told.len())).collect();
    places.sort_unstable();
    let disk = fs::OpenOptions::new().write(true).open(&before)?;
    let (mut told, mut waiting, mut at, mut mark, mut most) = (told.into_iter(), Vec::new(), 0, 0, 0);
    for place in places {
        for told in told.by_ref().take(place - at) {
            match told {
                Told::Flush => write_all(&disk, waiting.drain(..))?,
                Told::Write(place, data) => {
                    if place == MARKS {
                        let digits = data.split(|byte| !byte.is_ascii_digit()).next().unwrap_or_default();
                        mark = std::str::from_utf8(digits)?.parse()?;
                    }
                    waiting.push((place, data));
                }
            }
        }
        at = place;
        fs::copy(&before, &cut)?;
        // In whatever order a disk writes what it has.
        write_all(
            &fs::OpenOptions::new().write(true).open(&cut)?,
            waiting.iter().copied().filter(|_| random.below(2) == 0),
        )?;
        recover(&cut).with_context(|| format!("cut at {place}"))?;
        let count = mark.min(ROUNDS);
        let names: Vec<String> = (1..=count).map(|number| format!("f{number}")).collect();
        let found = if names.is_empty() { Vec::new() } else { sums_of(&cut, &names)? };
        let lost = found.iter().zip(&sums).position(|(found, sum)| found != sum);
        ensure!(
            found.len() == count && lost.is_none(),
            "cut at {place}: f{} was confirmed, and is lost",
            lost.unwrap_or(0) + 1
        );
        most = most.max(count);
    }
    ensure!(most > ROUNDS / 2, "the cuts are all at the beginning");
    println!("# power_cuts: {CUTS} of {at} writes and flushes ({flushes}), up to {most} files");
    Ok(())
}

/// Six disks on PCI, and the link's port: four lines interrupt for seven devices. Two guests write all of them at once, and all is answered.
fn shared_lines() -> Result<()> {
    const DISKS: usize = 6;
    let folder = tempfile::tempdir()?;
    let images: Vec<PathBuf> = (0..DISKS).map(|number| folder.path().join(format!("{number}.img"))).collect();
    for image in &images {
        fs::write(image, vec![b'a'; 2 << 20])?;
    }
    let half = |first: u64, serial: &str| {
        (0..DISKS)
            .map(|number| part(&format!("virtio{number}"), (first, 1 << 20), false, &format!("{serial}{number}")))
            .collect()
    };
    let vms = vec![with("one", half(0, "a"), folder.path())?, with("other", half(1 << 20, "b"), folder.path())?];
    let (disk_bus, port_bus) = (PortBus::Pci, PortBus::Pci);
    let host = Host { disks: images.clone(), disk_bus, port: true, port_bus, ..Host::default() };
    let run = host.start_and_stay(vms)?;
    let fill = |letter: char| {
        format!(
            "for d in a b c d e f; do tr '\\0' {letter} < /dev/zero | dd of=/dev/vd$d bs=64k count=16 iflag=fullblock \
             conv=fsync 2>/dev/null & done; wait; echo filled $((6*7))"
        )
    };
    run.ask("one", "echo ready", "ready\r\n")?;
    run.ask("other", "echo ready", "ready\r\n")?;
    run.console("one")?.expect("# ", SOON)?;
    run.console("one")?.send(format!("{}\n", fill('x')))?;
    run.ask("other", &fill('y'), "\nfilled 42")?;
    run.console("one")?.expect("\nfilled 42", SOON)?;
    run.check_log()?;
    drop(run);
    let expected = [vec![b'x'; 1 << 20], vec![b'y'; 1 << 20]].concat();
    for image in &images {
        ensure!(fs::read(image)? == expected, "what was flushed is not in {}", image.display());
    }
    Ok(())
}
