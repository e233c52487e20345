//! Saving, restoring and cloning, and other orders to a VM meanwhile.

use super::*;

/// Waits until `croft ps` shows the first VM so.
fn shows(stage: &Stage, state: &str, transfer: &str) {
    let found = || {
        let json: serde_json::Value = serde_json::from_str(&stage.says(&["ps", "--json"])).unwrap();
        (json[0]["state"] == state && json[0]["transfer"] == transfer).then_some(())
    };
    let comes = (0..600).find_map(|_| {
        found().or_else(|| {
            thread::sleep(Duration::from_millis(100));
            None
        })
    });
    assert!(comes.is_some(), "never {state} and {transfer}: {}", stage.says(&["ps"]));
}

/// A VM that stands still because it is saved is not one that somebody has paused: whoever pauses it is obeyed.
#[test]
fn one_that_stands_still_for_its_save_can_be_paused() {
    for pause in [&["pause", "web"][..], &["pause", "--all"]] {
        let stage = Stage::new(true);
        assert_eq!(stage.says(&["guestinfo", "web", "set", HOLDS, "1"]), "");
        stage.says(&["stop", "--force", "db"]);
        let file = stage.folder.path().join("web.saved");
        let mut saving = stage.start(&["save", "web", file.to_str().unwrap()]);
        shows(&stage, "paused", "saved");
        assert!(stage.says(&["ps"]).contains("paused, being saved"));
        let forced = stage.croft(&["reboot", "--force", "web"]);
        let said = "croft: web is being saved; wait until that is done, or end the command that does it\n";
        assert_eq!((forced.status.code(), &*text(&forced.stderr)), (Some(1), said));
        assert_eq!(stage.says(pause), "web: paused\n");
        // The hypervisor has heard of it, which ends the save here.
        assert_eq!(saving.wait().unwrap().code(), Some(1));
        assert_eq!(stage.says(&["guestinfo", "web", "get", PAUSES]), "1\n");
        let refused = stage.croft(&["pause", "web"]);
        assert_eq!(text(&refused.stderr), "croft: web does not run: it is paused\n", "nothing saves it any more");
    }
}

/// A VM that is being restored is off or paused for a while, and nobody waits for it to start or to go on.
#[test]
fn one_that_is_being_restored_is_not_started() {
    let stage = Stage::new(true);
    let path = &stage.saved();
    assert_eq!(stage.says(&["guestinfo", "web", "set", HOLDS, "1"]), "");
    assert_eq!(stage.says(&["stop", "--force", "web"]), STOPPED);
    let mut restoring = stage.start(&["restore", path, "--name", "web"]);
    shows(&stage, "paused", "restored");
    for order in [&["start"][..], &["reboot"], &["reboot", "--force"], &["resume"], &["stop"]] {
        let refused = stage.croft(&[order, &["web"]].concat());
        let said = "croft: web is being restored; wait until that is done, or end the command that does it\n";
        assert_eq!((refused.status.code(), &*text(&refused.stderr)), (Some(1), said), "{order:?}");
    }
    assert_eq!(stage.says(&["resume", "--all"]), "", "it goes on by itself");
    restoring.kill().unwrap();
    restoring.wait().unwrap();
}

/// A restored VM runs while its memory comes: whoever pauses it then may let it go on.
#[test]
fn one_whose_memory_still_comes_is_paused_and_goes_on() {
    let stage = Stage::new(true);
    let path = &stage.saved();
    assert_eq!(stage.says(&["guestinfo", "web", "set", ARRIVES, "1"]), "");
    assert_eq!(stage.says(&["stop", "--force", "web"]), STOPPED);
    let mut restoring = stage.start(&["restore", path, "--name", "web"]);
    shows(&stage, "running", "arriving");
    assert_eq!(stage.says(&["pause", "web"]), "web: paused\n");
    let refused = stage.croft(&["stop", "web"]);
    assert!(text(&refused.stderr).contains("`croft resume web` lets it go on"), "{}", text(&refused.stderr));
    assert_eq!(stage.says(&["resume", "--all"]), "web: running\n");
    let refused = stage.croft(&["reboot", "--force", "web"]);
    assert!(text(&refused.stderr).contains("web is being restored; wait"), "{}", text(&refused.stderr));
    restoring.kill().unwrap();
    restoring.wait().unwrap();
}

/// What comes from the hypervisor is looked at before it is a file; and so is a file before the hypervisor hears of it. What
/// was there before stays.
#[test]
fn what_is_no_saved_vm_is_neither_kept_nor_sent() {
    let stage = Stage::new(true);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("web.saved");
    fs::write(&file, b"UCSAVED\0before").unwrap();
    let path = file.to_str().unwrap();
    let refused = stage.croft(&["save", "web", path]);
    let said = text(&refused.stderr);
    assert_eq!(
        (refused.status.code(), &*said),
        (
            Some(1),
            "croft: what came from the hypervisor is wrong: this is no saved VM; `croft save VM FILE` makes one\n"
        )
    );
    assert_eq!(fs::read(&file).unwrap(), b"UCSAVED\0before");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a draft was left");
    fs::write(&file, "a site").unwrap();
    let refused = stage.croft(&["save", "web", path]);
    assert!(text(&refused.stderr).contains("would be lost: name another file"), "{}", text(&refused.stderr));
    assert_eq!(fs::read(&file).unwrap(), b"a site");
    let refused = stage.croft(&["restore", path]);
    let expected = format!("croft: {path}: this is no saved VM; `croft save VM FILE` makes one\n");
    assert_eq!((refused.status.code(), text(&refused.stderr)), (Some(1), expected));
    let nowhere = folder.path().join("no").join("web.saved");
    let refused = stage.croft(&["save", "web", nowhere.to_str().unwrap()]);
    assert!(text(&refused.stderr).contains("No such file or directory"), "{}", text(&refused.stderr));
}

/// A guest may end as soon as it goes on from a file. It was restored all the same.
#[test]
fn who_ends_at_once_was_restored() {
    let stage = Stage::new(true);
    let path = &stage.saved();
    assert_eq!(stage.says(&["stop", "--force", "web"]), STOPPED);
    let expected = format!("web: powered off\nweb: restored from {path}\n");
    assert_eq!(stage.says(&["restore", path, "--name", "web"]), expected);
}

/// A guest that powered itself off before is not one that has just ended: what its VM refuses is an error.
#[test]
fn who_was_off_and_refuses_was_not_restored() {
    let stage = Stage::new(true);
    let path = &stage.saved();
    assert_eq!(stage.says(&["guestinfo", "web", "set", UNFIT, "1"]), "");
    assert!(stage.says(&["stop", "web"]).contains("powered off"));
    let refused = stage.croft(&["restore", path, "--name", "web"]);
    assert_eq!((refused.status.code(), text(&refused.stdout)), (Some(1), String::new()));
    assert!(text(&refused.stderr).contains("web has other memory"), "{}", text(&refused.stderr));
}

/// What a VM waits for is sent first, also from a file that is compressed; what is to stand still is sent as the file has it.
#[test]
fn what_is_waited_for_is_sent_first() {
    for (pause, compress) in [(false, true), (true, false)] {
        let stage = Stage::new(true);
        let file = stage.folder.path().join("web.saved");
        let mut writing = croft::saved::Writing::create(&file, compress).unwrap();
        writing.write(&made_up::saved(&made_up::counted(3))).unwrap();
        writing.keep().unwrap();
        assert_eq!(stage.says(&["stop", "--force", "web"]), STOPPED);
        let path = file.to_str().unwrap();
        let mut arguments = vec!["restore", path, "--name", "web"];
        arguments.extend(pause.then_some("--pause"));
        assert!(stage.says(&arguments).contains(&format!("web: restored from {path}")));
    }
}

/// A clone is refused, with the reason and before its VM stands still, where no clone of it can go on.
#[test]
fn a_clone_needs_a_place_of_its_own() {
    let stage = Stage::new(true);
    let refused = |arguments: &[&str]| {
        let done = stage.croft(arguments);
        (done.status.code(), text(&done.stderr))
    };
    let own = "croft: web cannot take its own place; name another VM of the site file with --name, which is off\n";
    assert_eq!(refused(&["clone", "web", "--name", "web"]), (Some(1), own.to_owned()));
    let (status, said) = refused(&["clone", "web", "--name", "db"]);
    assert!(
        status == Some(1) && said.starts_with("croft: db is running; a saved VM, or a clone, takes the place"),
        "{said}"
    );
    for arguments in [["clone", "web", "--name", "nobody"], ["clone", "nobody", "--name", "web"]] {
        let (status, said) = refused(&arguments);
        assert!(status == Some(2) && said.contains("nobody") && said.contains("web, db"), "{said}");
    }
    let changes = vec![vec![64 << 20, 0], vec![2 << 20]];
    let other = Stage::with(true, About { changes, ..About::default() });
    assert_eq!(other.says(&["stop", "--force", "db"]), "db: stopped by the operator\n");
    let said = "croft: db is no place for a clone of web: that has 64M, 0 for what is written to its disks, db has 2M; `changes` in the site \
                file must be the same\n";
    let done = other.croft(&["clone", "web", "--name", "db"]);
    assert_eq!((done.status.code(), &*text(&done.stderr)), (Some(1), said));
    stage.croft(&["stop", "--force", "web"]);
    let shapes = "that has 1 vCPUs, 64 MiB of memory and 7 devices, web has 2, 64 and 7";
    let expected = format!("croft: web is no place for a clone of db: {shapes}\n");
    assert_eq!(refused(&["clone", "db", "--name", "web"]), (Some(1), expected));
}

/// A copy that takes its time says how far it is: of a file that is looked at, of one that is sent, and of memory that comes later.
#[test]
fn how_far_a_copy_is_is_told() {
    for pause in [true, false] {
        let stage = Stage::new(true);
        let path = stage.saved();
        let length = fs::metadata(&path).unwrap().len();
        stage.says(&["stop", "--force", "web"]);
        let mut told = BTreeMap::new();
        let order = control::Order::Restore { vm: Some("web".to_owned()), file: path.clone().into(), pause };
        control::perform(control::connect(&stage.socket()).unwrap(), &order, |report| {
            if let control::Report::Meanwhile { what, bytes, of } = report {
                assert!(of.is_some_and(|of| bytes <= of), "{what}: {bytes} of {of:?}");
                told.insert(what, (bytes, of.unwrap()));
            }
        })
        .unwrap();
        let copied = if pause { "web: being restored" } else { "web: runs while its memory comes" };
        let end = if pause { length } else { told[copied].1 };
        let whole = |what: &str, bytes| (what.to_owned(), (bytes, bytes));
        assert_eq!(told, [whole(&format!("{path}: being looked at"), length), whole(copied, end)].into());
    }
}

/// On a terminal that stands in one line, which is gone at the end.
#[test]
fn a_terminal_shows_how_far_a_copy_is() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("croft.socket");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let (mut person, program) = terminal();
    let mut command = Command::new(env!("CARGO_BIN_EXE_croft"));
    command.args(["save", "web", "web.saved", "--host"]).arg(&socket).current_dir(folder.path());
    let mut croft = command.stdout(Stdio::null()).stderr(program).spawn().unwrap();
    // So that whoever reads from the terminal sees its end.
    drop(command);
    let (mut client, _) = listener.accept().unwrap();
    // Nothing is said of what is quick.
    thread::sleep(Duration::from_secs(2));
    client
        .write_all(b"{\"Meanwhile\":{\"what\":\"web: being saved\",\"bytes\":4096,\"of\":null}}\n\"Done\"\n")
        .unwrap();
    let line = "croft: web: being saved, 4K so far";
    until(&mut person, &format!("\r{line}\r{:length$}\r", "", length = line.len()));
    assert_eq!(croft.wait().unwrap().code(), Some(0));
}
