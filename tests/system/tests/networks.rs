//! Networks between guests, by Linux's own driver: what one serves another gets whole, in both directions at once; nobody else sees any of it,
//! or can pretend to be another; and a connection outlives that one of its ends is saved, and goes on from there.

use anyhow::{Context, Result, ensure};
use croft::control::{self, About, Order, Place, Report};
use croft::session::Condition;
use croft::site::{Port, Ports, Vm};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use system::guest;
use system::host::{Host, Run};
use system::{BOOT, SOON, scenario};

fn main() -> ExitCode {
    system::run(vec![
        scenario("networks::transfer", transfer),
        scenario("networks::saved_in_the_middle_of_a_transfer", saved),
    ])
}

/// The last byte of each guest's address is that of its port's.
const WEB: u8 = 1;
const CLIENT: u8 = 2;

/// A Linux guest with a port of this network.
fn on_network(name: &str, network: &str, last: u8, folder: &Path) -> Result<Vm> {
    let mut vm = guest::linux_with_networks(name, 2, "quiet", folder)?;
    let port = Port { network: network.to_owned(), vlan: 0, mac: [0x52, 0x54, 0, 0, 0, last], mtu: 1500 };
    vm.ports = Ports::of([port]).context("one is not too many")?;
    Ok(vm)
}

/// Gives it its address, and serves a file of 8 MiB that no other guest has.
fn set_up(run: &Run, name: &str, last: u8) -> Result<()> {
    let address = format!("ip link set eth0 up && ip addr add 10.0.0.{last}/24 dev eth0; echo address $?");
    run.ask(name, &address, "\naddress 0")?;
    let serve = "mkdir -p /srv; head -c 8388608 /dev/urandom > /srv/file; httpd -h /srv; echo serves $?";
    run.ask(name, serve, "\nserves 0")?;
    Ok(())
}

/// The checksum of what it serves.
fn sum_of(run: &Run, name: &str) -> Result<String> {
    let said = run.ask(name, "echo sum $(sha256sum < /srv/file) is $((6*7))", "is 42")?;
    let sum = said.rsplit("sum ").next().and_then(|rest| rest.split(' ').next()).context("a sum")?.to_owned();
    ensure!(sum.len() == 64, "{said}");
    Ok(sum)
}

/// A host with the socket that croft's commands use.
struct Operated {
    run: Run,
    socket: PathBuf,
    _server: control::Server,
}

impl Operated {
    fn start(vms: Vec<Vm>, folder: &Path) -> Result<Self> {
        let run = Host { port: true, ..Host::default() }.start_and_stay(vms)?;
        let socket = folder.join("socket");
        let server = control::serve(run.session(), About::default(), &Place::at(&socket)?)?;
        Ok(Self { run, socket, _server: server })
    }

    fn order(&self, order: &Order) -> Result<(), control::ControlError> {
        control::perform(control::connect(&self.socket)?, order, |_| ())
    }

    /// What `croft stat` says of the one port of a VM.
    fn port(&self, vm: &str) -> Result<Counted> {
        let mut text = String::new();
        control::perform(control::connect(&self.socket)?, &Order::Statistics { vms: vec![vm.to_owned()] }, |report| {
            if let Report::Statistics(all) = report {
                text = croft::statistics::select(&all, &[vm.to_owned()]);
            }
        })?;
        let line = text.lines().find(|line| line.starts_with("  port 0 on ")).context("no line of its port")?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse().ok()).with_context(|| line.to_owned());
        let (sent, received) = ((number(6)?, number(8)?), (number(13)?, number(15)?));
        let dropped = line.split_once("dropped:").map_or(String::new(), |(_, dropped)| dropped.to_owned());
        Ok(Counted { sent, received, dropped })
    }
}

/// What a port has carried: frames and bytes, each way, and what was dropped.
#[derive(Debug)]
struct Counted {
    sent: (u64, u64),
    received: (u64, u64),
    dropped: String,
}

/// Two guests reach each other, and get what the other serves, both at once. A third one on another network, with the same addresses, sees
/// none of it. One that takes another's address is heard by nobody.
fn transfer() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let vms = [("web", "lan", WEB), ("client", "lan", CLIENT), ("stranger", "other", WEB)];
    let vms = vms.map(|(name, network, last)| on_network(name, network, last, folder.path()));
    let host = Operated::start(vms.into_iter().collect::<Result<_>>()?, folder.path())?;
    let run = &host.run;
    for (name, last) in [("web", WEB), ("client", CLIENT), ("stranger", WEB)] {
        run.ask(name, "echo is $(cat /sys/class/net/eth0/address)", &format!("\nis 52:54:00:00:00:0{last}\r\n"))?;
        set_up(run, name, last)?;
    }
    run.ask("client", "ping -c 3 10.0.0.1 >/tmp/ping; echo pinged $?", "\npinged 0")?;
    run.ask("stranger", "ping -c 1 -W 2 10.0.0.2 >/tmp/ping; echo pinged $?", "\npinged 1")?;
    let (web, client) = (sum_of(run, "web")?, sum_of(run, "client")?);
    // Each of the other's: two that send to each other want the same locks.
    let get = |from: u8| {
        format!(
            "for i in 1 2; do wget -q -O - http://10.0.0.{from}/file | sha256sum > /tmp/sum-$i & done; wait; cat /tmp/sum-*; echo got $((6*7))"
        )
    };
    run.console("client")?.send(format!("{}\n", get(WEB)))?;
    let from_client = run.ask("web", &get(CLIENT), "got 42")?;
    let from_web = run.console("client")?.expect("got 42", BOOT)?;
    ensure!(from_client.matches(&client).count() == 2, "not what client serves: {from_client}");
    ensure!(from_web.matches(&web).count() == 2, "not what web serves: {from_web}");
    let client = host.port("client")?;
    for port in [&host.port("web")?, &client] {
        ensure!(port.sent.1 > 16_000_000 && port.received.1 > 16_000_000, "{port:?}");
        ensure!(!port.dropped.contains("forged") && !port.dropped.contains("header"), "{port:?}");
    }
    // Longer than any packet of the network: they came as the sender's driver left them, and nobody has divided them.
    ensure!(client.received.1 / client.received.0 > 1514, "{client:?}");
    let stranger = host.port("stranger")?;
    ensure!(stranger.received.0 == 0, "{stranger:?}");

    run.ask(
        "client",
        "ip link set eth0 down; ip link set eth0 address 52:54:00:00:00:09; ip link set eth0 up; echo is $((6*7))",
        "is 42",
    )?;
    run.ask("client", "ping -c 2 -W 2 10.0.0.1 >/tmp/ping; echo pinged $?", "\npinged 1")?;
    let client = host.port("client")?;
    ensure!(client.dropped.contains("forged"), "{client:?}");
    run.ask("client", "dmesg | grep -c 'virtio_net.*[Ee]rror'", "\n0\r\n")?;
    run.check_log()
}

/// A guest is saved in the middle of a transfer, while the one that sends stands still, and ends. It goes on where it was saved, and so does
/// the connection.
fn saved() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("client.saved");
    let vms = [on_network("web", "lan", WEB, folder.path())?, on_network("client", "lan", CLIENT, folder.path())?];
    let host = Operated::start(vms.into(), folder.path())?;
    let run = &host.run;
    set_up(run, "web", WEB)?;
    set_up(run, "client", CLIENT)?;
    let web = sum_of(run, "web")?;
    // It reads a megabyte, and then waits: by then all buffers on the way are full.
    let reader =
        "{ dd bs=4096 count=256 2>/dev/null; touch /tmp/half; while ! [ -f /tmp/go ]; do sleep 1; done; cat; }";
    let get = format!(
        "(wget -q -O - http://10.0.0.1/file | {reader} | sha256sum > /tmp/sum; touch /tmp/done) & echo begun $((6*7))"
    );
    run.ask("client", &get, "begun 42")?;
    run.ask("client", "while ! [ -f /tmp/half ]; do sleep 1; done; echo half $((6*7))", "half 42")?;
    // While it is saved the first time its partner sends to it all the time, and it runs on.
    let save = Order::Save { vm: "client".to_owned(), file: file.clone(), compress: false };
    let pings = "ping -A -q -c 2000000 10.0.0.2 >/tmp/ping 2>&1 & echo floods $((6*7))";
    run.ask("web", pings, "floods 42")?;
    run.ask("client", "ping -c 2 10.0.0.1 >/tmp/ping; echo pinged $?", "\npinged 0")?;
    let before = host.port("web")?.sent.0;
    host.order(&save)?;
    let after = host.port("web")?.sent.0;
    ensure!(after > before + 50, "web has sent {} frames while client was saved", after - before);
    run.ask(
        "web",
        "kill -INT $! && wait $!; grep -c 'packets transmitted' /tmp/ping; echo quiet $((6*7))",
        "\n1\r\nquiet 42",
    )?;
    let client = host.port("client")?;
    ensure!(client.received.0 > 50, "{client:?}");
    std::fs::remove_file(&file)?;
    run.ask("client", "ping -c 2 10.0.0.1 >/tmp/ping; echo pinged $?", "\npinged 0")?;
    host.order(&Order::Pause { vm: "web".to_owned() })?;
    host.order(&save)?;
    host.order(&Order::Stop { vm: "client".to_owned(), force: true, seconds: 60 })?;
    run.wait_for("client", SOON, Condition::is_off)?;
    host.order(&Order::Restore { vm: None, file, pause: false })?;
    host.order(&Order::Resume { vm: "web".to_owned() })?;
    run.console("client")?.send("\n")?;
    run.ask(
        "client",
        "touch /tmp/go; while ! [ -f /tmp/done ]; do sleep 1; done; cat /tmp/sum; echo whole $((6*7))",
        "whole 42",
    )?;
    run.ask("client", "grep -c . /tmp/sum; cat /tmp/sum", &web)?;
    run.ask("client", "ping -c 2 10.0.0.1 >/tmp/ping; echo pinged $?", "\npinged 0")?;
    run.check_log()
}
