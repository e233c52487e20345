//! README's commands, in order, unchanged: what a new user types first must work, on the demonstration that README itself offers.
//!
//! Every line of a plain code block is run by a shell, in the project's folder; `cargo xtask run` gets a terminal and stays there
//! while the next block's commands talk to it. A command that this program does not know how to check is a failure, so README
//! cannot gain an untested one. The one line that is not run is the clone. For a command within a sentence, also one without its
//! program, the program must know the verb and each option, and so it must for each option in a remark; files that sentences name must
//! be there in the end. The other documents' commands are looked at in the same way.

use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use system::host::Turn;
use system::terminal::Terminal;
use system::{BOOT, SOON, place, scenario};
use tempfile::TempDir;

/// How long a command may take that ends by itself: one of them shuts a guest down.
const COMMAND: Duration = Duration::from_secs(150);

fn main() -> ExitCode {
    system::run(vec![
        scenario("readme::commands", commands),
        scenario("readme::commands_of_other_documents_exist", other_documents),
    ])
}

fn commands() -> Result<()> {
    let readme = std::fs::read_to_string(place::project().join("README.md"))?;
    let _turn = Turn::take()?;
    let mut reader = Reader { runtime: tempfile::tempdir()?, demonstration: None };
    let mut run = 0;
    for block in blocks(&readme) {
        for (command, remark) in lines(block) {
            println!("README: {command}");
            for option in remark.split([' ', ';', ',']).filter(|word| word.starts_with("--")) {
                reader.know(&format!("{command} {option}")).with_context(|| format!("README's remark: {remark}"))?;
            }
            reader.follow(&command, &remark).with_context(|| format!("README's command: {command}"))?;
            run += 1;
        }
    }
    reader.end_demonstration()?;
    let mentioned = [mentioned(&readme), options(&readme)].concat();
    for command in &mentioned {
        reader.know(command).with_context(|| format!("README mentions: {command}"))?;
    }
    ensure!(mentioned.len() >= 20, "only {mentioned:?} were found within README's sentences");
    for file in
        spans(&readme).filter(|span| ["target/", ".undercroft/", ".ci/"].iter().any(|begin| span.starts_with(begin)))
    {
        ensure!(place::project().join(file).exists(), "README says that there is {file}");
    }
    // What the gate has run before it comes here, from a clone: README says the same, no more and no less.
    let gate = std::fs::read_to_string(place::project().join(".ci/run"))?;
    let steps: Vec<String> =
        gate.lines().filter(|line| line.starts_with("cargo ")).map(|step| format!("`{step}`")).collect();
    let (sentence, words) =
        (format!("`.ci/run` is {}.", steps.join(" and ")), readme.split_whitespace().collect::<Vec<_>>().join(" "));
    ensure!(steps.len() > 1 && words.contains(&sentence), "README does not say: {sentence}");
    // That the blocks were found at all: there are more commands than these.
    ensure!(run >= 26, "only {run} commands were found in README");
    Ok(())
}

/// What the other documents say that one can type: the program has each verb and each option, and cargo each package.
fn other_documents() -> Result<()> {
    let reader = Reader { runtime: tempfile::tempdir()?, demonstration: None };
    let project = place::project();
    let mut files =
        vec![project.join("CONTRIBUTING.md"), project.join("SPECIFICATION.md"), project.join("ARCHITECTURE.md")];
    for folder in ["docs", "docs/formats", "docs/decisions", "docs/spec"] {
        for entry in std::fs::read_dir(project.join(folder))? {
            files.push(entry?.path());
        }
    }
    let (mut known, mut wrong) = (BTreeSet::new(), Vec::new());
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "md")) {
        let text = std::fs::read_to_string(file)?;
        let typed = blocks(&text).into_iter().chain(shell_blocks(&text)).flat_map(lines).map(|(command, _)| command);
        for command in typed.filter(|command| is_ours(command)).chain(mentioned(&text)) {
            if known.insert(command.clone())
                && let Err(why) = reader.know(&command)
            {
                wrong.push(format!("{} mentions {command}: {why}", file.display()));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(known.len() >= 50, "only {known:?} were found");
    Ok(())
}

/// The code blocks that name no language: those are for a shell.
fn blocks(readme: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (number, part) in readme.split("```").enumerate() {
        if number % 2 == 1
            && let Some(block) = part.strip_prefix('\n')
        {
            found.push(block);
        }
    }
    found
}

/// The commands of a block, each with the remark behind it; a backslash at the end continues a line.
fn lines(block: &str) -> Vec<(String, String)> {
    let whole = block.replace("\\\n", " ");
    let split = |line: &str| match line.split_once(" #") {
        Some((command, remark)) => (command.trim().to_owned(), remark.trim().to_owned()),
        None => (line.trim().to_owned(), String::new()),
    };
    whole.lines().map(split).filter(|(command, _)| !command.is_empty()).collect()
}

/// The code blocks that say that they are for a shell.
fn shell_blocks(text: &str) -> Vec<&str> {
    text.split("```").skip(1).step_by(2).filter_map(|part| part.strip_prefix("sh\n")).collect()
}

/// The pieces of code within sentences.
fn spans(text: &str) -> impl Iterator<Item = &str> {
    text.split("```").step_by(2).flat_map(|text| text.split('`').skip(1).step_by(2))
}

fn is_ours(command: &str) -> bool {
    ["cargo croft ", "cargo xtask ", "cargo test -p ", "croft "].iter().any(|begin| command.starts_with(begin))
}

/// Commands of ours within sentences.
fn mentioned(text: &str) -> Vec<String> {
    spans(text).map(|span| span.replace('\n', " ")).filter(|span| is_ours(span)).collect()
}

/// Options that stand alone within sentences, behind the command before them in their paragraph, or, if there is none, behind one of those
/// that ask a host.
fn options(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for paragraph in text.split("```").step_by(2).flat_map(|text| text.split("\n\n")) {
        let mut latest = "croft ps".to_owned();
        for span in spans(paragraph) {
            if is_ours(span) {
                latest = span.replace('\n', " ");
            } else if span.starts_with("--") {
                found.push(format!("{latest} {span}"));
            }
        }
    }
    found
}

/// Whoever follows README.
struct Reader {
    /// Where sockets of running hosts are: nobody else's.
    runtime: TempDir,
    /// `cargo xtask run`, once it has been typed.
    demonstration: Option<Terminal>,
}

impl Reader {
    fn follow(&mut self, command: &str, remark: &str) -> Result<()> {
        match command {
            clone if clone.starts_with("git clone ") => Ok(()),
            "cargo xtask run" => self.demonstrate(command),
            "cargo croft ps" => self.wait_for_tools(command),
            qemu if qemu.starts_with("qemu-system-aarch64 ") => self.boot(qemu),
            // The next two end by themselves, and need no host that runs.
            build if build.starts_with("cargo xtask build") => self.succeed(build).map(drop),
            bundle if bundle.starts_with("cargo croft bundle ") => {
                // From here on README does without the demonstration.
                self.end_demonstration()?;
                self.succeed(bundle).map(drop)
            }
            image if image.starts_with("cargo croft image ") => self.succeed(image).map(drop),
            run if run.starts_with("cargo croft run ") && run.contains(" --firmware ") => {
                self.demonstrate(run)?;
                self.end_demonstration()
            }
            "cargo croft console web" => self.attach(command),
            croft if croft.starts_with("cargo croft ") => self.operate(croft, remark),
            _ => bail!("this test does not know how to try it"),
        }
    }

    /// A shell in the project's folder that finds what setup unpacked.
    fn shell(&self, line: &str) -> Command {
        let own = place::project().join(".undercroft/bin");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths([own].into_iter().chain(std::env::split_paths(&path))).unwrap_or(path);
        let mut command = Command::new("sh");
        command.args(["-c", line]).current_dir(place::project()).env("PATH", path).env("TERM", "xterm");
        command.env("XDG_RUNTIME_DIR", self.runtime.path()).stdin(Stdio::null());
        command
    }

    /// Runs a command that must succeed.
    fn succeed(&self, line: &str) -> Result<Output> {
        let child = self.shell(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (process, (sender, receiver)) = (child.id(), channel());
        std::thread::spawn(move || sender.send(child.wait_with_output()));
        let Ok(output) = receiver.recv_timeout(COMMAND) else {
            let ended = Command::new("kill").arg(process.to_string()).status();
            bail!("it runs on after {COMMAND:?} ({ended:?})");
        };
        let output = output?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "it ended with {}: {said}", output.status);
        Ok(output)
    }

    fn demonstrate(&mut self, line: &str) -> Result<()> {
        let mut terminal = Terminal::start(self.shell(line))?;
        terminal.expect("cpus online", BOOT * 2)?;
        terminal.expect("# ", SOON)?;
        self.demonstration = Some(terminal);
        Ok(())
    }

    /// `croft ps`, as often as it takes until both guests' tools have said who they are.
    fn wait_for_tools(&self, line: &str) -> Result<()> {
        let end = Instant::now() + BOOT;
        loop {
            let listed = String::from_utf8_lossy(&self.succeed(line)?.stdout).into_owned();
            let reports = |vm: &&str| {
                let row = listed.lines().find(|row| row.starts_with(*vm)).unwrap_or_default();
                row.contains("running") && row.contains("10.0.2.15") && row.contains("Debian")
            };
            if ["web", "db"].iter().all(reports) {
                return Ok(());
            }
            ensure!(Instant::now() < end, "the tools report nothing:\n{listed}");
            std::thread::sleep(Duration::from_secs(2));
        }
    }

    /// Whether the program has this command, with these options: by its own help. Of a test by cargo, whether there is its package.
    fn know(&self, command: &str) -> Result<()> {
        let words: Vec<&str> = command.trim_start_matches("cargo ").split_whitespace().collect();
        if let ["test", options @ ..] = &words[..] {
            let mut packages = options.windows(2).filter(|pair| pair[0] == "-p").map(|pair| pair[1]);
            let folders = ["core", "el2", "tests", "tools"];
            let is_there = |name: &str| folders.iter().any(|folder| place::project().join(folder).join(name).is_dir());
            ensure!(packages.all(is_there), "there is no such package");
            return Ok(());
        }
        let [program, verb, ..] = words[..] else { bail!("no verb") };
        // It hands its arguments on.
        let program = if verb == "run" { "croft" } else { program };
        let help =
            String::from_utf8_lossy(&self.succeed(&format!("cargo {program} {verb} --help"))?.stdout).into_owned();
        for option in words.iter().filter(|word| word.starts_with("--")) {
            let option = option.split('=').next().unwrap_or(option);
            ensure!(help.split([' ', ',', '\n']).any(|word| word == option), "{option} is not in its help:\n{help}");
        }
        Ok(())
    }

    /// A terminal at a VM's console, which answers there, and leaves it.
    fn attach(&self, line: &str) -> Result<()> {
        let mut terminal = Terminal::start(self.shell(line))?;
        let end = Instant::now() + BOOT;
        // The guest may be on its way up: its shell takes what was typed as soon as it is there.
        terminal.press("echo at $((40 + 2))\r")?;
        terminal.expect("at 42", end.saturating_duration_since(Instant::now()))?;
        terminal.press("\x1dq")?;
        let status = terminal.end(SOON)?;
        ensure!(status.success(), "it ended with {status}; shown is:\n{}", terminal.shown());
        Ok(())
    }

    /// That `croft ps` has this word in the row of `vm`.
    fn is(&self, vm: &str, word: &str) -> Result<()> {
        let listed = String::from_utf8_lossy(&self.succeed("cargo croft ps")?.stdout).into_owned();
        let row = listed.lines().find(|row| row.starts_with(vm)).unwrap_or_default();
        ensure!(row.contains(word), "{vm} is not {word}:\n{listed}");
        Ok(())
    }

    /// A command to the host that the demonstration runs.
    fn operate(&mut self, line: &str, remark: &str) -> Result<()> {
        let said = String::from_utf8_lossy(&self.succeed(line)?.stdout).into_owned();
        if line.ends_with("get guestinfo.ip") {
            ensure!(said.trim() == "10.0.2.15", "it printed {said:?}");
        }
        // What is to be typed in the guest's console, which is in the foreground.
        if let Some(typed) = remark.strip_prefix("in the guest: ") {
            let terminal = self.demonstration.as_mut().context("no demonstration runs")?;
            terminal.press(&format!("{typed}\r"))?;
            terminal.expect("\nhello", SOON)?;
        }
        let words: Vec<&str> = line.split(' ').skip(2).collect();
        match words[..] {
            ["stop", vm] => self.is(vm, "off")?,
            ["stop", "--force", vm] => self.is(vm, "stopped")?,
            ["pause", ref vms @ ..] => vms.iter().try_for_each(|vm| self.is(vm, "paused"))?,
            ["resume", "--all"] => ["web", "db"].iter().try_for_each(|vm| self.is(vm, "running"))?,
            ["resume" | "reboot" | "start", vm] | ["restore" | "clone", .., "--name", vm] => self.is(vm, "running")?,
            ["dump", .., core] => {
                let magic = std::fs::read(place::project().join(core))?.get(..4) == Some(b"\x7fELF");
                ensure!(magic, "{core} is no ELF file");
            }
            ["stat", "--json", vm] => ensure!(said.contains(&format!("\"{vm}\"")), "it printed {said:?}"),
            ["log"] => ensure!(said.contains("db: restored"), "it printed {said:?}"),
            ["completions", .., file] => {
                let script = std::fs::read_to_string(place::project().join(file))?;
                ensure!(script.contains("complete -F"), "{file} has no completions:\n{script}");
            }
            ["check", ..] => ensure!(said.contains("2 VMs"), "it printed {said:?}"),
            // Each has been looked at above, is looked at by what comes next, or says nothing.
            ["guestinfo", ..] | ["time", ..] | ["save", ..] => {}
            _ => bail!("this test does not know how to judge it"),
        }
        Ok(())
    }

    fn end_demonstration(&mut self) -> Result<()> {
        let Some(mut terminal) = self.demonstration.take() else { return Ok(()) };
        terminal.press("\x1dq")?;
        let status = terminal.end(SOON)?;
        ensure!(status.success(), "the demonstration ended with {status}; shown is:\n{}", terminal.shown());
        Ok(())
    }

    /// QEMU alone, with the console as readable text: until both guests have started their first process.
    fn boot(&self, line: &str) -> Result<()> {
        // The shell becomes QEMU, so that what is ended is QEMU.
        let mut machine = Ended(self.shell(&format!("exec {line}")).stdout(Stdio::piped()).spawn()?);
        let output = machine.0.stdout.take().context("its output")?;
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        // A line of one VM's ends where the other has something to say, and goes on later behind its name.
        let mut wanted = vec![("[web] ", String::new()), ("[db] ", String::new())];
        let (end, mut all) = (Instant::now() + BOOT, String::new());
        while !wanted.is_empty() {
            let Ok(text) = receiver.recv_timeout(end.saturating_duration_since(Instant::now())) else {
                let missing: Vec<_> = wanted.iter().map(|(vm, _)| vm).collect();
                bail!("nothing more from {missing:?}; all that it printed:\n{all}");
            };
            for (vm, said) in &mut wanted {
                said.extend(text.strip_prefix(*vm));
            }
            wanted.retain(|(_, said)| !said.contains("cpus online"));
            all.push_str(&text);
            all.push('\n');
        }
        Ok(())
    }
}

/// A machine that is ended with the scenario.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
