//! Disks: Linux's own driver and file system on an image that lies in the bundle, in two guests at once, after a reboot, and behind a
//! move to another host in the middle of reading; and on disks that guests write, each its own.

use anyhow::{Context, Result, ensure};
use croft::control::{self, About, Order, Place};
use croft::session::Condition;
use croft::site::{Backend, Disk, Disks, Vm};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use system::file_system::{FILES, file_system, output};
use system::guest;
use system::host::{Host, Run};
use system::memory::Memory;
use system::{BOOT, SOON, scenario};

fn main() -> ExitCode {
    system::run(vec![
        scenario("disks::ext4", ext4),
        scenario("disks::saved_in_the_middle_of_reading", saved),
        scenario("disks::written", written),
        scenario("disks::saved_in_the_middle_of_writing", saved_writing),
    ])
}

/// A Linux guest with the driver, and with these images and serial numbers.
fn with_disks(name: &str, disks: &[(&Path, &str)], folder: &Path) -> Result<Vm> {
    let mut vm = guest::linux_with_disks(name, 2, "quiet", folder)?;
    let disks = disks.iter().map(|(image, serial)| Disk::of_image(image.to_path_buf(), (*serial).to_owned()));
    vm.disks = Disks::of(disks).context("too many disks")?;
    Ok(vm)
}

/// The first of its disks can be written, with so much memory for that, and so can the others.
fn to_be_written(mut vm: Vm, changes: &[u64]) -> Result<Vm> {
    let disks = vm.disks.iter().zip(changes).filter_map(|(disk, &changes)| {
        let backend = Backend::Image { image: disk.image()?.clone(), changes };
        Some(Disk { backend, ..disk.clone() })
    });
    let disks: Vec<_> = disks.collect();
    vm.disks = Disks::of(disks).context("too many disks")?;
    Ok(vm)
}

/// Mounts the first disk, and looks at all that is on it.
fn look(run: &Run, name: &str) -> Result<()> {
    run.ask(name, "mkdir -p /mnt; mount -t ext4 -o ro /dev/vda /mnt; echo mounted $?", "\nmounted 0")?;
    run.ask(name, "cd /mnt; sha256sum -c SUMS | grep -c OK", &format!("\n{FILES}\r\n"))?;
    Ok(())
}

/// Two guests have one image, and one of them another one beside it. They read what is in its files and every byte of the device, and
/// cannot write it; the driver has nothing to complain of, also in the next life.
fn ext4() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let image = file_system(folder.path(), "root", 1)?;
    let other = folder.path().join("other.img");
    fs::write(&other, [b'o'; 1 << 20])?;
    let one = with_disks("one", &[(&image, "root-1"), (&other, "disk1")], folder.path())?;
    let two = with_disks("two", &[(&image, "disk0")], folder.path())?;
    let run = Host::default().start(vec![one, two])?;
    run.ask("one", "echo is $(cat /sys/block/vda/serial)", "\nis root-1\r\n")?;
    run.ask("one", "echo is $(cat /sys/block/vdb/serial) $(cat /sys/block/vdb/size)", "\nis disk1 2048\r\n")?;
    run.ask("one", "cat /sys/block/vda/ro", "\n1\r\n")?;
    let sum = output(Command::new("sha256sum").arg(&image))?;
    let sum = sum.split(' ').next().context("a sum")?;
    for name in ["one", "two"] {
        // Before it is mounted: a file system has changes of its own in mind, which it cannot write.
        run.ask(name, "sha256sum /dev/vda", &format!("\n{sum} "))?;
        look(&run, name)?;
        run.ask(name, "dd if=/dev/zero of=/dev/vda count=1 2>/dev/null; echo wrote $?", "\nwrote 1")?;
        // Many requests at once.
        let all = "echo 3 > /proc/sys/vm/drop_caches; for i in 1 2 3 4; do cat /mnt/* /dev/vda | wc -c & done; wait; echo read $?";
        run.ask(name, all, "\nread 0")?;
        run.ask(name, "dmesg | grep -c 'error.*vda'", "\n0\r\n")?;
    }
    run.console("one")?.expect("# ", SOON)?;
    run.console("one")?.send("reboot -f\n")?;
    run.console("one")?.expect("cpus online", BOOT)?;
    look(&run, "one")?;
    for name in ["one", "two"] {
        run.console(name)?.send("\n")?;
        run.console(name)?.expect("# ", SOON)?;
        run.console(name)?.send("exit\n")?;
    }
    run.finish(SOON)
}

/// A guest writes to its disk, trims it, and finds all that behind a reset; another one with the same image sees nothing of it. Where
/// there is no memory left for it a write fails, and the log says so; the VM goes on. When it is off, all of that memory is free.
fn written() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let image = file_system(folder.path(), "root", 1)?;
    let small = folder.path().join("small.img");
    fs::write(&small, vec![b's'; 8 << 20])?;
    let disks = [(&*image, "root"), (&*small, "small")];
    let writer = to_be_written(with_disks("writer", &disks, folder.path())?, &[16 << 20, 2 << 20])?;
    let other = to_be_written(with_disks("other", &[(&*image, "root")], folder.path())?, &[2 << 20])?;
    let run = Host::default().start_and_stay(vec![writer, other])?;
    let sum = output(Command::new("sha256sum").arg(&image))?;
    let sum = sum.split(' ').next().context("a sum")?;
    run.ask("writer", "cat /sys/block/vda/ro", "\n0\r\n")?;
    run.ask("writer", "sha256sum /dev/vda", &format!("\n{sum} "))?;
    run.ask("writer", "mkdir -p /mnt; mount -t ext4 /dev/vda /mnt; echo mounted $?", "\nmounted 0")?;
    let change = "dd if=/dev/urandom of=/mnt/new bs=64k count=48 2>/dev/null; rm /mnt/file-1; sha256sum /mnt/new > /mnt/NEW; \
                  echo changed $((6*7))";
    run.ask("writer", change, "\nchanged 42")?;
    run.ask("writer", "sync; echo 3 > /proc/sys/vm/drop_caches; sha256sum -c /mnt/NEW", "new: OK")?;
    run.ask("writer", "cd /mnt; sha256sum -c SUMS 2>/dev/null | grep -c OK", &format!("\n{}\r\n", FILES - 1))?;
    run.ask("writer", "fstrim /mnt; echo trimmed $?", "\ntrimmed 0")?;
    run.console("writer")?.send("cd /; sync; reboot -f\n")?;
    run.console("writer")?.expect("cpus online", BOOT)?;
    run.ask("writer", "mkdir -p /mnt; mount -t ext4 /dev/vda /mnt; echo mounted $?", "\nmounted 0")?;
    run.ask("writer", "sha256sum -c /mnt/NEW", "new: OK")?;
    run.ask("writer", "cd /mnt; sha256sum -c SUMS 2>/dev/null | grep -c OK", &format!("\n{}\r\n", FILES - 1))?;
    run.ask("writer", "cd /; umount /mnt; dmesg | grep -c 'error.*vda'", "\n0\r\n")?;
    run.ask("other", "sha256sum /dev/vda", &format!("\n{sum} "))?;
    // Of 8 MiB 2 are there, less the list.
    let fill = "dd if=/dev/zero of=/dev/vdb bs=64k count=128 conv=fsync 2>/dev/null; echo filled $?";
    run.ask("writer", fill, "\nfilled 1")?;
    run.ask("writer", "dmesg | grep -q 'error.*vdb'; echo told $?", "\ntold 0")?;
    // Linux tells whoever opens the device next of what failed when nobody waited for it.
    run.ask("writer", "dd if=/dev/zero of=/dev/vdb count=1 conv=fsync 2>/dev/null; echo heard $((6*7))", "\nheard 42")?;
    run.ask("writer", "blkdiscard /dev/vdb; echo discarded $?", "\ndiscarded 0")?;
    run.ask(
        "writer",
        "dd if=/dev/zero of=/dev/vdb bs=64k count=31 conv=fsync 2>/dev/null; echo again $?",
        "\nagain 0",
    )?;
    // What the first disk has is elsewhere, whatever was written to the second.
    run.ask(
        "writer",
        "echo 3 > /proc/sys/vm/drop_caches; mount -t ext4 /dev/vda /mnt; sha256sum -c /mnt/NEW",
        "new: OK",
    )?;
    run.ask("writer", "cd /mnt; sha256sum -c SUMS 2>/dev/null | grep -c OK", &format!("\n{}\r\n", FILES - 1))?;
    run.ask("writer", "cd /; umount /mnt; echo apart $((6*7))", "\napart 42")?;
    run.ask("other", "echo still $((6*7))", "\nstill 42")?;
    let log = run.session().log().transcript();
    let told = "virtio-blk: a write to the disk small failed: the 2 MiB for what is written to it are used up";
    ensure!(log.matches(told).count() == 1, "it is told once:\n{log}");
    for name in ["writer", "other"] {
        run.console(name)?.send("\n")?;
        run.console(name)?.expect("# ", SOON)?;
        run.console(name)?.send("exit\n")?;
        run.wait_for(name, SOON, Condition::is_off)?;
    }
    let end = Memory::read(&run.statistics(SOON)?)?;
    ensure!(end.guests == 0 && end.tables == 0, "guests that are off still have memory: {end:?}");
    // And in its next life each disk is as it came, with all of its memory.
    run.control(abi::link::Command::Reboot { vm: run.vm("writer")? })?;
    run.wait_for("writer", SOON, |condition| !condition.is_off())?;
    // What is typed before it listens is lost.
    run.console("writer")?.expect("cpus online", BOOT)?;
    run.ask("writer", "sha256sum /dev/vda", &format!("\n{sum} "))?;
    run.ask("writer", "dd if=/dev/zero of=/dev/vdb bs=64k count=31 conv=fsync 2>/dev/null; echo anew $?", "\nanew 0")?;
    run.check_log_but(&[told])
}

/// A guest that writes all the time is saved, runs on, and goes on in another place with what it had written by then.
fn saved_writing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let image = file_system(folder.path(), "root", 1)?;
    let file = folder.path().join("writer.saved");
    let place = || to_be_written(with_disks("writer", &[(&image, "root")], folder.path())?, &[26 << 20]);
    let here = Operated::start(place()?, folder.path(), "here")?;
    here.run.ask("writer", "mkdir -p /mnt; mount -t ext4 /dev/vda /mnt; cd /mnt; echo mounted $?", "\nmounted 0")?;
    let rounds = "n=0; while :; do dd if=/dev/urandom of=/tmp/a bs=64k count=16 2>/dev/null; cp /tmp/a new; sync; \
                  fstrim .; echo 3 > /proc/sys/vm/drop_caches; cmp /tmp/a new || echo bad >> /tmp/bad; n=$((n+1)); \
                  echo $n > /tmp/next; mv /tmp/next /tmp/n; done & echo begun $((6*7))";
    here.run.ask("writer", rounds, "\nbegun 42")?;
    here.run.ask("writer", "while ! [ -f /tmp/n ]; do sleep 1; done; echo writes $((6*7))", "\nwrites 42")?;
    here.order(&Order::Save { vm: "writer".to_owned(), file: file.clone(), compress: false })?;
    let more = "before=$(cat /tmp/n); while [ $(cat /tmp/n) -lt $((before+2)) ]; do sleep 1; done; cat /tmp/bad; echo after $((6*7))";
    let look = |run: &Run| -> Result<()> {
        let said = run.ask("writer", more, "\nafter 42")?;
        ensure!(said.contains("can't open '/tmp/bad'"), "a file was not as it was written: {said}");
        run.ask("writer", "sha256sum -c SUMS | grep -c OK", &format!("\n{FILES}\r\n"))?;
        run.ask("writer", "dmesg | grep -c 'error.*vda'", "\n0\r\n")?;
        run.check_log()
    };
    look(&here.run)?;
    drop(here);

    let restore = Order::Restore { vm: None, file, pause: false };
    let less = to_be_written(place()?, &[8 << 20])?;
    let wrong = Operated::start(Vm { autostart: false, ..less }, folder.path(), "wrong")?;
    wrong.run.wait_for("writer", SOON, Condition::is_off)?;
    let refused = wrong.order(&restore).err().context("it goes on with less memory for its disk")?.to_string();
    ensure!(refused.contains("the saved VM has 26 MiB for what is written to its disks, writer has 8"), "{refused}");
    drop(wrong);

    let there = Operated::start(Vm { autostart: false, ..place()? }, folder.path(), "there")?;
    there.run.wait_for("writer", SOON, Condition::is_off)?;
    there.order(&restore)?;
    there.run.console("writer")?.send("\n")?;
    look(&there.run)
}

/// A host with the socket that croft's commands use.
struct Operated {
    run: Run,
    socket: PathBuf,
    _server: control::Server,
}

impl Operated {
    fn start(vm: Vm, folder: &Path, name: &str) -> Result<Self> {
        let run = Host { port: true, ..Host::default() }.start_and_stay(vec![vm])?;
        let socket = folder.join(name);
        let server = control::serve(run.session(), About::default(), &Place::at(&socket)?)?;
        Ok(Self { run, socket, _server: server })
    }

    fn order(&self, order: &Order) -> Result<(), control::ControlError> {
        control::perform(control::connect(&self.socket)?, order, |_| ())
    }
}

/// A guest that reads all the time is saved, and goes on reading on another host that has the same image. One that has another image
/// is no place for it, and says why.
fn saved() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (image, other) = (file_system(folder.path(), "root", 1)?, file_system(folder.path(), "other", 7)?);
    let file = folder.path().join("reader.saved");
    let here = Operated::start(with_disks("reader", &[(&image, "root")], folder.path())?, folder.path(), "here")?;
    look(&here.run, "reader")?;
    let rounds = "n=0; while :; do echo 3 > /proc/sys/vm/drop_caches; sha256sum -c SUMS > /tmp/sums 2>&1 || echo bad >> /tmp/bad; \
                  n=$((n+1)); echo $n > /tmp/next; mv /tmp/next /tmp/n; done & echo begun $((6*7))";
    here.run.ask("reader", rounds, "\nbegun 42")?;
    here.run.ask("reader", "while ! [ -f /tmp/n ]; do sleep 1; done; echo reads $((6*7))", "\nreads 42")?;
    here.order(&Order::Save { vm: "reader".to_owned(), file: file.clone(), compress: false })?;
    here.run.check_log()?;
    drop(here);

    let restore = Order::Restore { vm: None, file, pause: false };
    let place = |image: &Path| -> Result<Vm> {
        Ok(Vm { autostart: false, ..with_disks("reader", &[(image, "root")], folder.path())? })
    };
    let wrong = Operated::start(place(&other)?, folder.path(), "wrong")?;
    wrong.run.wait_for("reader", SOON, Condition::is_off)?;
    let refused = wrong.order(&restore).err().context("it goes on with another disk")?.to_string();
    ensure!(refused.contains("a disk has not the contents that it had when the VM was saved"), "{refused}");
    drop(wrong);

    let there = Operated::start(place(&image)?, folder.path(), "there")?;
    there.run.wait_for("reader", SOON, Condition::is_off)?;
    there.order(&restore)?;
    there.run.console("reader")?.send("\n")?;
    let more = "before=$(cat /tmp/n); while [ $(cat /tmp/n) -lt $((before+2)) ]; do sleep 1; done; cat /tmp/bad; echo after $((6*7))";
    let said = there.run.ask("reader", more, "\nafter 42")?;
    ensure!(said.contains("can't open '/tmp/bad'"), "files were not as they should be: {said}");
    there.run.ask("reader", "dmesg | grep -c 'error.*vda'", "\n0\r\n")?;
    there.run.check_log()?;
    there.run.console("reader")?.expect_unless("# ", &["Kernel panic"], BOOT)?;
    Ok(())
}
