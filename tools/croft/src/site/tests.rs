//! Every mistake gets its line, its reason and its remedy.

use super::Site;
use super::keys::{Absent, Form, Key, Needs, VM};
use crate::kernel::Raw;
use abi::bundle::{Calls, Group, HostPart, Quota, Time, TimeAway, TimeSource};
use std::path::Path;

const GOOD: &str = r#"[host]
cpu = "cortex-a76"
cpus = 4
memory = "2G"

[[vm]]
name = "web"
vcpus = 2
memory = "512M"
kernel = "images/Image"
initrd = "/boot/initrd"
cmdline = "console=ttyAMA0"

[[vm]]
name = "db"
vcpus = 1
memory = "512M"
kernel = "images/Image"
weight = 200
affinity = [0, 2]
"#;

fn site(text: &str) -> Site {
    Site::parse(text, Path::new("folder/site.toml")).unwrap_or_else(|error| panic!("{error}"))
}

fn mistakes(text: &str) -> String {
    Site::parse(text, Path::new("site.toml")).unwrap_err().to_string()
}

/// What is said when `from` is replaced by `to` in the good file, the first time it occurs.
fn after(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from));
    mistakes(&GOOD.replacen(from, to, 1))
}

#[test]
fn a_good_file_is_understood() {
    let site = site(GOOD);
    let host = site.host.as_ref().unwrap();
    assert_eq!((host.cpu.as_str(), host.cpus, host.memory), ("cortex-a76", 4, 2 << 30));
    let [web, db] = &site.vms[..] else { panic!("two VMs") };
    assert_eq!((web.name.as_str(), web.vcpus, web.memory), ("web", 2, 512 << 20));
    assert_eq!(web.kernel, Path::new("folder/images/Image"));
    assert_eq!(web.initrd.as_deref(), Some(Path::new("/boot/initrd")));
    assert_eq!((web.cmdline.as_str(), web.weight, web.affinity), ("console=ttyAMA0", 100, u64::MAX));
    assert_eq!((db.cmdline.as_str(), db.weight, db.affinity), ("", 200, 0b101));
    assert_eq!((site.lines.vms[0].kernel, site.lines.vms[1].table, site.vm("db")), (10, 14, Some(1)));
}

#[test]
fn the_host_may_be_left_out() {
    let only_vms = &GOOD[GOOD.find("[[vm]]").unwrap()..];
    assert_eq!(site(only_vms).host, None);
}

#[test]
fn sizes() {
    let said = after(r#"memory = "512M""#, r#"memory = "512Q""#);
    assert_eq!(said, r#"site.toml:9: memory = "512Q": not a size; write a number with K, M or G"#);
    let said = after(r#"memory = "512M""#, r#"memory = true"#);
    assert_eq!(said, "site.toml:9: memory = true: not a size; write a number with K, M or G");
    let said = after(r#"memory = "512M""#, r#"memory = "3M""#);
    assert_eq!(said, r#"site.toml:9: memory = "3M": a VM has 2M to 256G, in steps of 2M"#);
    let said = after(r#"memory = "2G""#, r#"memory = "1G""#);
    assert_eq!(
        said,
        "site.toml:4: memory = \"1G\": the VMs do not fit: 1024 MiB for their RAM, 4 for its tables, 4 for vCPUs and devices, \
         0 for their files and 22 for the hypervisor make 1054 MiB, and the host has 1024; give it 1054 MiB or more, or the VMs less"
    );
}

#[test]
fn counts() {
    let said = after("vcpus = 2", "vcpus = 0");
    assert_eq!(said, "site.toml:8: vcpus = 0: a VM's vCPUs: it must be a whole number from 1 to 8");
    assert!(after("vcpus = 2", "vcpus = 9").starts_with("site.toml:8: vcpus = 9: a VM's vCPUs"));
    assert!(after("vcpus = 2", "vcpus = -1").contains("from 1 to 8"));
    assert!(after("vcpus = 2", "vcpus = \"2\"").contains("from 1 to 8"));
    assert!(after("cpus = 4", "cpus = 0").starts_with("site.toml:3: cpus = 0: the host's CPUs"));
    assert!(after("weight = 200", "weight = 0").starts_with("site.toml:19: weight = 0: a VM's weight"));
}

#[test]
fn names() {
    let said = after(r#"name = "db""#, r#"name = "web""#);
    assert_eq!(said, "site.toml:15: name = \"web\": the VM of line 6 has this name already; each needs its own");
    let said = after(r#"name = "db""#, r#"name = "My VM""#);
    assert_eq!(said, "site.toml:15: name = \"My VM\": a name is 1 to 32 of a-z, 0-9 and -");
}

#[test]
fn coherency_is_on_demand_unless_said() {
    use abi::bundle::Coherency;
    let with = |keys: &str| GOOD.replace("name = \"db\"", &format!("name = \"db\"\n{keys}"));
    let coherency = |keys: &str| site(&with(keys)).vms[1].coherency;
    assert_eq!(coherency(""), Coherency::OnDemand);
    assert_eq!(coherency("coherency-strict = true"), Coherency::Strict);
    assert_eq!(coherency("coherency = \"on-demand\"\ncoherency-strict = false"), Coherency::OnDemand);
    assert_eq!(coherency("coherency = \"eager\""), Coherency::Eager);
    assert_eq!(coherency("coherency = \"off-when-coherent\""), Coherency::OffWhenCoherent);
    let wrong = mistakes(&with("coherency = \"never\""));
    assert!(wrong.contains("when pages become executable: write one of \"on-demand\", \"eager\""), "{wrong}");
    let wrong = mistakes(&with("coherency = \"eager\"\ncoherency-strict = true"));
    assert!(wrong.contains("coherency-strict = true: it belongs to pages that are executable on demand"), "{wrong}");
}

#[test]
fn a_pause_stops_time_only_where_that_is_asked_for() {
    let with = |keys: &str| GOOD.replacen("weight = 200", keys, 1);
    let stops = |keys: &str| site(&with(keys)).vms[1].pause_stops_time;
    assert_eq!([stops(""), stops("pause-stops-time = false"), stops("pause-stops-time = true")], [false, false, true]);
    assert!(mistakes(&with("pause-stops-time = 1")).contains("write true or false"));
}

#[test]
fn a_vm_starts_with_the_host_unless_it_is_not_to() {
    let with = |keys: &str| GOOD.replacen("weight = 200", keys, 1);
    let starts = |keys: &str| site(&with(keys)).vms[1].autostart;
    assert_eq!([starts(""), starts("autostart = true"), starts("autostart = false")], [true, true, false]);
    assert!(mistakes(&with("autostart = \"no\"")).contains("write true or false"));
}

#[test]
fn a_time_of_its_own() {
    let with = |keys: &str| GOOD.replacen("weight = 200", keys, 1);
    let time = |keys: &str| site(&with(keys)).vms[1].time;
    assert_eq!(time(""), Time { frequency: 0, rate: 1_000_000, source: TimeSource::Auto, away: TimeAway::Advance });
    assert_eq!(time("time = {}"), Time::default());
    assert_eq!(
        time("time = { frequency = \"62.5M\", rate = \"1.0\" }"),
        Time { frequency: 62_500_000, ..Time::default() }
    );
    let slow = Time { frequency: 24_000_000, rate: 1_000, ..Time::default() };
    assert_eq!(time("time.frequency = 24_000_000\ntime.rate = 0.001"), slow);
    let sources = ["auto", "cp15", "mmio"].map(|name| time(&format!("time.source = \"{name}\"")).source);
    assert_eq!(sources, TimeSource::LIST);
    let away = TimeAway::NAMES.map(|name| time(&format!("time.away = \"{name}\"")).away);
    assert_eq!(away, TimeAway::LIST);
    let said = mistakes(&with("time.away = \"stop\""));
    assert!(said.contains("what becomes of the time that it is saved: write one of \"advance\", \"freeze\""), "{said}");
    assert!(mistakes(&with("time.source = \"hpet\"")).contains("\"auto\", \"cp15\", \"mmio\""));
    for wrong in ["0", "-1", "1099511627776", "\"1099511627776\"", "\"62.5 MHz\"", "\"999999\"", "true", "[]", "nan"] {
        let said = mistakes(&with(&format!("time = {{ frequency = {wrong} }}")));
        let rule = "a counter's frequency in hertz: it must be from 1M to 1G; write for example \"62.5M\"";
        assert_eq!(said, format!("site.toml:19: frequency = {wrong}: {rule}"));
    }
    for wrong in ["-1", "\"-1\"", "0", "0.0", "\"0.0009\"", "\"10.000001\"", "\"0.0000001\"", "inf", "\"half\"", "1e0"]
    {
        let said = mistakes(&with(&format!("time = {{ rate = {wrong} }}")));
        let rule = "how fast its time passes: it must be from 0.001 to 10.0; write for example \"0.5\"";
        assert_eq!(said, format!("site.toml:19: rate = {wrong}: {rule}"));
    }
    let said = mistakes(&with("time = { frequenzy = \"1G\" }"));
    assert_eq!(said, "site.toml:19: frequenzy: there is no such key; did you mean `frequency`?");
    let said = mistakes(&with("time = \"62.5M\""));
    assert!(
        said.contains(
            "time = \"62.5M\": not a table; write time = { frequency = \"62.5M\", rate = \"0.5\", source = \"mmio\", away = \"freeze\" }"
        ),
        "{said}"
    );
}

#[test]
fn watchdogs() {
    let with = |keys: &str| GOOD.replacen("weight = 200", keys, 1);
    let doors = |keys: &str| site(&with(keys)).vms[1].doors;
    let plain = doors("");
    assert_eq!((plain.watchdog_milliseconds, plain.watchdog_action, plain.watchdog_choices), (0, 2, 0));
    assert_eq!((plain.vcpu_watchdog_milliseconds, plain.generic_watchdog), (0, false));
    let all = doors(
        "watchdog = 500\nvcpu-watchdog = 700\nwatchdog-action = \"pause\"\nwatchdog-actions = [\"log\", \"stop\"]\nsbsa-watchdog = true\nwfe = true",
    );
    assert_eq!((all.watchdog_milliseconds, all.watchdog_action, all.watchdog_choices), (500, 3, 0b10001));
    assert_eq!((all.vcpu_watchdog_milliseconds, all.generic_watchdog), (700, true));
    let said = |keys: &str| mistakes(&with(keys));
    assert_eq!(
        said("watchdog-action = \"bark\""),
        "site.toml:19: watchdog-action = \"bark\": an action is one of log, inject, reset, pause, stop"
    );
    assert!(
        said("watchdog-actions = [\"log\", \"bite\"]").contains("19: watchdog-actions = \"bite\": an action is one of")
    );
    assert!(said("watchdog-actions = []").contains("write a list of what the guest may choose"));
    assert!(said("vcpu-watchdog = 5").contains("it must be a whole number from 100 to 86400000"));
    assert!(said("sbsa-watchdog = 1").contains("write true or false"));
}

#[test]
fn unknown_keys_name_the_nearest_known_one() {
    assert_eq!(after("vcpus = 2", "vcpu = 2").lines().count(), 2, "unknown, and the right one missing");
    assert!(after("vcpus = 2", "vcpu = 2").contains("site.toml:8: vcpu: there is no such key; did you mean `vcpus`?"));
    let said = after("weight = 200", "colour = \"red\"");
    assert_eq!(
        said,
        "site.toml:19: colour: there is no such key; [[vm]] has name, vcpus, memory, kernel, load, entry, initrd, disk, network, cmdline, weight, affinity, autostart, enclave, pause-stops-time, time, coherency, coherency-strict, vmware, vmware-strict, vmware-channels, vmware-message, vmware-keys, vmware-store, vmware-log, vmware-user, vmware-kernel, time-sync, wfe, watchdog, watchdog-action, watchdog-actions, watchdog-user, vcpu-watchdog, sbsa-watchdog"
    );
    assert!(after("[host]", "[hosts]").contains("site.toml:1: hosts: there is no such key; did you mean `host`?"));
}

#[test]
fn missing_keys_and_tables() {
    let said = after("kernel = \"images/Image\"\n", "");
    assert_eq!(said, "site.toml:6: `kernel` is missing; write for example kernel = \"path/to/Image\"");
    assert_eq!(mistakes(""), "site.toml:1: there is no VM; describe at least one in a [[vm]] table");
    assert!(mistakes("[vm]\nname = \"a\"\n").contains("begin each VM with [[vm]]"));
    assert!(mistakes("host = 3\n").starts_with("site.toml:1: host = 3: not a table; write [host]"));
    assert!(mistakes("vm = [1]\n").contains("not a table; write [[vm]]"));
}

#[test]
fn what_is_no_toml_says_where() {
    let said = after("cpus = 4", "cpus = ");
    assert!(said.starts_with("site.toml:3: not TOML: "), "{said}");
    assert_eq!(said.lines().count(), 1);
    let said = after("cpus = 4", "cpu = \"b\"");
    assert!(said.starts_with("site.toml:3: not TOML: duplicate key"), "{said}");
}

#[test]
fn a_size_without_a_unit_is_bytes_and_says_so() {
    let said = after(r#"memory = "512M""#, "memory = 256");
    let steps = "a VM has 2M to 256G, in steps of 2M";
    assert_eq!(said, format!("site.toml:9: memory = 256: that is 256 bytes; write memory = \"256M\" for MiB: {steps}"));
    assert!(after(r#"memory = "512M""#, r#"memory = "256""#).contains("write memory = \"256M\" for MiB: a VM has"));
    assert!(after(r#"memory = "2G""#, "memory = 2048").contains("that is 2048 bytes; write memory = \"2048M\""));
    assert!(!after(r#"memory = "512M""#, r#"memory = "3M""#).contains("bytes"));
}

#[test]
fn cpu_models_are_qemus_and_64_bit() {
    for cpu in ["max,pauth-qarma3=on", "cortex-a76,cntfrq=1000000000", "neoverse-v1"] {
        let file = GOOD.replacen("cortex-a76", cpu, 1);
        assert_eq!(site(&file).host.unwrap().cpu, cpu);
    }
    let said = after("cortex-a76", "pentium");
    assert!(
        said.starts_with("site.toml:2: cpu = \"pentium\": QEMU has no such 64-bit CPU model; there are a64fx,"),
        "{said}"
    );
    for (cpu, known) in [("cortex-a73,pmu=off", "cortex-a"), ("cortexa76", "cortex-a76"), ("Max", "max")] {
        assert!(after("cortex-a76", cpu).contains(&format!("did you mean \"{known}")), "{cpu}");
    }
    for cpu in ["cortex-a15", "cortex-m33", "", ",pmu=off"] {
        assert!(after("cortex-a76", cpu).contains("QEMU has no such 64-bit CPU model"), "{cpu}");
    }
    for (cpu, why) in [
        ("max,aarch64=off", "aarch64=off: a 32-bit CPU cannot execute a 64-bit hypervisor; leave it out"),
        ("max,pauth=off,aarch64=no", "aarch64=no: a 32-bit CPU cannot"),
        ("cortex-a72,has_el2=false", "has_el2=false: a hypervisor needs a CPU with EL2; leave it out"),
    ] {
        assert!(after("cortex-a76", cpu).contains(why), "{cpu}");
    }
    // What is not switched off may be named.
    assert_eq!(site(&GOOD.replacen("cortex-a76", "max,aarch64=on,has_el2=on", 1)).host.unwrap().cpu.len(), 25);
}

#[test]
fn a_store_that_can_keep_nothing_is_a_mistake() {
    let file = |keys: &str| format!("{GOOD}vmware = true\n{keys}\n");
    for (keys, said) in [
        (
            "vmware-keys = 0\nvmware-store = \"64K\"",
            "site.toml:23: vmware-store = \"64K\": no value is kept with vmware-keys = 0; let that be more, or leave this out",
        ),
        (
            "vmware-keys = 16\nvmware-store = 0",
            "site.toml:22: vmware-keys = 16: no value is kept with vmware-store = 0; let that be more, or leave this out",
        ),
    ] {
        assert_eq!(mistakes(&file(keys)), said);
    }
    for keys in [
        "vmware-keys = 0",
        "vmware-store = 0",
        "vmware-keys = 0\nvmware-store = 0",
        "vmware-keys = 1\nvmware-store = 11",
    ] {
        site(&file(keys));
    }
}

/// Every key of the table, alone and with what it needs.
#[test]
fn keys_that_would_do_nothing_are_mistakes() {
    let pairs = [
        ("vmware-strict = true", "vmware = true"),
        ("vmware-channels = 8", "vmware = true"),
        ("vmware-message = 4096", "vmware = true"),
        ("vmware-keys = 3", "vmware = true"),
        ("vmware-store = 70000", "vmware = true"),
        ("vmware-log = 0", "vmware = true"),
        ("vmware-user = [\"rpc\"]", "vmware = true"),
        ("vmware-kernel = []", "vmware = true"),
        ("time-sync = true", "vmware = true"),
        ("watchdog-action = \"pause\"", "watchdog = 500"),
        ("watchdog-action = \"reset\"", "vcpu-watchdog = 500"),
        ("watchdog-action = \"stop\"", "sbsa-watchdog = true"),
        ("watchdog-actions = [\"log\"]", "wfe = true"),
        ("watchdog-user = true", "vmware = true"),
    ];
    for (key, needed) in pairs {
        let said = mistakes(&format!("{GOOD}{key}\n"));
        assert!(said.starts_with(&format!("site.toml:21: {key}: it does nothing without ")), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        site(&format!("{GOOD}{key}\n{needed}\n"));
    }
    // Nor does what is for calls that nobody may make.
    let calls = [
        ("vmware-channels = 8", "vmware-kernel = [\"rpc\"]"),
        ("vmware-message = 4096", "vmware-user = [\"rpc\"]"),
        ("vmware-log = 1024", "vmware-user = [\"rpc\"]"),
        ("time-sync = true", "vmware-kernel = [\"time\"]"),
        ("watchdog-user = true", "vmware-user = [\"own\"]"),
        ("watchdog-user = true", "wfe = true"),
        ("watchdog-actions = [\"log\"]", "vmware-kernel = [\"own\"]"),
        ("watchdog-actions = [\"log\"]", "vmware-user = [\"own\"]\nwatchdog-user = true"),
        ("watchdog-actions = [\"log\"]", "wfe = true"),
    ];
    for (key, enough) in calls {
        let none: String = ["vmware-user", "vmware-kernel"]
            .into_iter()
            .filter(|list| !enough.contains(list))
            .map(|list| format!("{list} = []\n"))
            .collect();
        let with = format!("{GOOD}vmware = true\n{key}\n");
        let said = mistakes(&format!("{with}vmware-user = []\nvmware-kernel = []\n"));
        assert!(said.starts_with(&format!("site.toml:22: {key}: ")), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        site(&format!("{with}{none}{enough}\n"));
    }
    let off = mistakes(&format!("{GOOD}vmware = false\nvmware-user = [\"rpc\"]\n"));
    assert!(off.starts_with("site.toml:22: vmware-user = [\"rpc\"]: it does nothing without vmware = true"), "{off}");
    site(&format!("{GOOD}time-sync = false\n"));
}

#[test]
fn affinity_names_cpus_that_exist() {
    let said = after("affinity = [0, 2]", "affinity = [0, 4]");
    assert_eq!(said, "site.toml:20: affinity = [0, 4]: the host's CPUs are numbered 0 to 3");
    assert!(after("affinity = [0, 2]", "affinity = []").contains("or leave it out"));
    assert!(after("affinity = [0, 2]", "affinity = [64]").contains("from 0 to 63"));
}

#[test]
fn all_mistakes_are_told_at_once() {
    let said = mistakes(&GOOD.replace("vcpus = 2", "vcpus = 0").replace("weight = 200", "weight = \"x\""));
    assert_eq!(said.lines().count(), 2, "{said}");
}

#[test]
fn files_that_are_not_there_are_told_with_their_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("site.toml");
    std::fs::write(&file, GOOD).unwrap();
    let said = Site::load(&file).unwrap_err().to_string();
    assert!(said.contains("site.toml:10: kernel = \""), "{said}");
    assert!(said.contains("images/Image\": there is no such file"), "{said}");
    let said = Site::load(Path::new("nowhere.toml")).unwrap_err().to_string();
    assert!(said.starts_with("nowhere.toml: cannot be read"), "{said}");
}

#[test]
fn what_a_guest_may_have_of_vmwares_service() {
    let with = |lines: &str| format!("{GOOD}vmware = true\n{lines}\n");
    let doors = |lines: &str| site(&with(lines)).vms[1].doors;
    let usual = doors("");
    assert_eq!((usual.quota, usual.user_calls, usual.kernel_calls), (Quota::default(), Calls::ALL, Calls::ALL));
    let own = doors(
        "vmware-channels = 8\nvmware-message = \"4K\"\nvmware-keys = 3\nvmware-store = 70000\nvmware-log = 0\n\
         vmware-user = [\"rpc\", \"own\"]\nvmware-kernel = []",
    );
    assert_eq!(own.quota, Quota { channels: 8, message: 4096, keys: 3, store: 70_000, log: 0 });
    assert_eq!((own.user_calls, own.kernel_calls), (Calls::only(&[Group::Rpc, Group::Own]), Calls(0)));
    let said = |lines: &str| mistakes(&with(lines));
    assert_eq!(
        said("vmware-channels = 1"),
        "site.toml:22: vmware-channels = 1: channels: it must be a whole number from 2 to 256"
    );
    assert_eq!(
        said("vmware-message = \"1M\""),
        "site.toml:22: vmware-message = \"1M\": bytes in a message: it must be from 256 to 65536"
    );
    let list = "write a list of what this level may call, of \"rpc\", \"time\", \"hardware\", \"own\"; [] for nothing";
    assert_eq!(said("vmware-user = [\"rcp\"]"), format!("site.toml:22: vmware-user = [\"rcp\"]: {list}"));
    assert_eq!(said("vmware-kernel = true"), format!("site.toml:22: vmware-kernel = true: {list}"));
    assert!(said("vmware-key = 1").contains("did you mean `vmware-keys`?"));
}

const NETWORKS: &str = "[[network]]\nname = \"lan\"\n[[network]]\nname = \"dmz\"\nmtu = 9000\n";

#[test]
fn networks_and_their_ports() {
    let with = |keys: &str| format!("{}{NETWORKS}", GOOD.replacen("weight = 200", keys, 1));
    let ports = |keys: &str| -> Vec<_> {
        let site = site(&with(keys));
        site.vms[1].ports.iter().map(|port| (port.network.clone(), port.mac, port.mtu)).collect()
    };
    // Made from the name `db`, and for ever the same: guests are configured by it.
    let (made, next) = ([0x02, 0x6a, 0x99, 0xa4, 0x2a, 0x67], [0x02, 0x98, 0x9b, 0xa4, 0x2a, 0x67]);
    assert_eq!(ports("network = []"), []);
    assert_eq!(ports("network = \"lan\""), [("lan".to_owned(), made, 1500)]);
    assert_eq!(ports("network = { name = \"dmz\" }"), [("dmz".to_owned(), made, 9000)]);
    let given = [0x52, 0x54, 0, 0xab, 0xcd, 0xef];
    let two = "network = [{ name = \"lan\", mac = \"52:54:00:ab:CD:ef\" }, \"lan\"]";
    assert_eq!(ports(two), [("lan".to_owned(), given, 1500), ("lan".to_owned(), next, 1500)]);
    let vlan = site(&with("network = { name = \"lan\", vlan = 7 }"));
    assert_eq!(vlan.vms[1].ports.iter().map(|port| port.vlan).collect::<Vec<_>>(), [7]);
    let said = |keys: &str| mistakes(&with(keys));
    let wrong = said("network = { name = \"lan\", vlan = 4095 }");
    assert!(
        wrong.contains("19: vlan = 4095: the number of a VLAN: it must be a whole number from 1 to 4094"),
        "{wrong}"
    );
    let unknown = said("network = \"lann\"");
    assert_eq!(unknown, "site.toml:19: network \"lann\": there is no such network; did you mean \"lan\"?");
    let missing = mistakes(&GOOD.replacen("weight = 200", "network = \"lan\"", 1));
    assert!(missing.ends_with("there is no such network; add a table [[network]] with name = \"lan\""), "{missing}");
    let group = said("network = { name = \"lan\", mac = \"01:00:5e:00:00:01\" }");
    assert!(group.contains("19: mac = \"01:00:5e:00:00:01\": an address is one of a single station"), "{group}");
    for wrong in
        ["52:54:00:12:34", "52:54:00:12:34:56:78", "52-54-00-12-34-56", "52:54:00:12:34:5", "52:54:00:12:34:+1", ""]
    {
        let said = said(&format!("network = {{ name = \"lan\", mac = \"{wrong}\" }}"));
        assert!(said.contains("an address is one of a single station, six pairs"), "{said}");
    }
    let twice = said(
        "network = [{ name = \"lan\", mac = \"02:00:00:00:00:01\" },\n{ name = \"lan\", mac = \"02:00:00:00:00:01\" }]",
    );
    assert_eq!(
        twice,
        "site.toml:20: mac = \"02:00:00:00:00:01\": a port of db on the network \"lan\" has it; each needs its own"
    );
    let own = switch::Mac(made);
    let other = with("network = \"lan\"").replacen(
        "vcpus = 2",
        &format!("vcpus = 2\nnetwork = {{ name = \"lan\", mac = \"{own}\" }}"),
        1,
    );
    let other = mistakes(&other);
    assert!(
        other.contains(&format!(
            "20: its address would be {own}, which a port of web on the network \"lan\" has; give it one"
        )),
        "{other}"
    );
    assert_eq!(ports("network = [{ name = \"lan\", mac = \"02:00:00:00:00:01\" }, { name = \"dmz\", mac = \"02:00:00:00:00:01\" }]").len(), 2);
    let many = said(&format!("network = [{}]", ["\"lan\""; 5].join(", ")));
    assert!(many.contains("19: network: 5 ports; a VM has at most 4"), "{many}");
    assert!(said("network = 3").contains("19: network = 3: not a table"));
    assert!(said("network = \"LAN\"").contains("a network's name is 1 to 32 of a-z, 0-9 and -"));
    for mtu in ["575", "65536", "\"9000\""] {
        let said = mistakes(&with("").replace("mtu = 9000", &format!("mtu = {mtu}")));
        assert!(said.contains("it must be a whole number from 576 to 65535"), "{said}");
    }
    let again = mistakes(&with("").replace("\"dmz\"", "\"lan\""));
    assert!(again.contains("name = \"lan\": another network has the same name; each needs its own"), "{again}");
    assert!(
        mistakes(&format!("{GOOD}[network]\nname = \"lan\"\n")).contains("not a list of tables; write [[network]]")
    );
}

#[test]
fn parts_of_the_hosts_disks() {
    let with = |keys: &str| GOOD.replace("weight = 200", keys);
    let parts = |keys: &str| -> Vec<_> {
        site(&with(keys)).vms[1].disks.iter().filter_map(|disk| disk.host().cloned()).collect()
    };
    let part = |disk: &str, offset, size, read_only| HostPart { disk: disk.to_owned(), offset, size, read_only };
    assert_eq!(parts("disk = { host = \"virtio0\" }"), [part("virtio0", 0, 0, false)]);
    let two = "disk = [{ image = \"a\" }, { host = \"serial:d-1\", offset = 512, size = \"1M\", read-only = true, serial = \"x\" }]";
    assert_eq!(parts(two), [part("serial:d-1", 512, 1 << 20, true)]);
    assert_eq!(site(&with(two)).lines.vms[1].disks[..3], [19, 19, 0]);
    let said = |keys: &str| mistakes(&with(keys));
    for (keys, what) in [
        (
            "{ image = \"a\", host = \"virtio0\" }",
            "19: host = \"virtio0\": what is on a disk is in an image or on a disk of the host's; leave one of the two out",
        ),
        (
            "{ host = \"virtio0\", changes = \"2M\" }",
            "changes = \"2M\": it belongs to an image, which this disk has not",
        ),
        ("{ image = \"a\", size = \"2M\" }", "size = \"2M\": it belongs to a disk of the host's; leave it out, or"),
        ("{ image = \"a\", read-only = true }", "read-only = true: it belongs to a disk of the host's"),
        (
            "{ host = \"sda\" }",
            "host = \"sda\": a disk of the host's is virtio0 to virtio31, or serial: and its serial",
        ),
        ("{ host = \"virtio0\", offset = 100 }", "offset = 100: "),
        ("{ host = \"virtio0\", size = 0 }", "size = 0: "),
    ] {
        let said = said(&format!("disk = {what}", what = keys));
        assert!(said.contains(what), "{said}");
    }
    // Two that write have nothing in common, in one VM or in two; those that only read may.
    let [one, other] = ["host = \"virtio0\", size = \"1M\"", "host = \"virtio0\", offset = \"1M\""];
    let pair = |one: &str, other: &str| format!("disk = [{{ {one} }},\n{{ {other} }}]");
    assert_eq!(parts(&pair(one, other)).len(), 2);
    assert_eq!(parts(&pair(&format!("{one}, read-only = true"), "host = \"virtio0\"")).len(), 2);
    assert_eq!(parts(&pair(one, "host = \"virtio1\"")).len(), 2);
    let both = said(&pair(one, "host = \"virtio0\", offset = \"512K\", serial = \"log\""));
    let name = &site(&with("")).vms[1].name;
    let expected = format!(
        "20: host = \"virtio0\": disk log of {name} may write where disk disk0 of {name} (line 19) may; give them parts that are apart"
    );
    assert!(both.contains(&expected), "{both}");

    let host = |disk: &str| {
        site(&with("").replace("memory = \"2G\"", &format!("memory = \"2G\"\n{disk}"))).host.unwrap().disks
    };
    assert_eq!(host("disk = \"d/a.img\"").len(), 1);
    assert_eq!(
        host("disk = [\"a.img\", \"b.img\"]").iter().map(|p| p.display().to_string()).collect::<Vec<_>>(),
        ["folder/a.img", "folder/b.img"]
    );
    let wrong = mistakes(&with("").replace("memory = \"2G\"", "memory = \"2G\"\ndisk = [3]"));
    assert!(wrong.contains("disk = 3: not a text"), "{wrong}");
}

#[test]
fn disks_one_or_several() {
    let with = |keys: &str| GOOD.replacen("weight = 200", keys, 1);
    let disks = |keys: &str| {
        let site = site(&with(keys));
        let all =
            site.vms[1].disks.iter().map(|disk| (disk.image().unwrap().display().to_string(), disk.serial.clone()));
        (all.collect::<Vec<_>>(), site.lines.vms[1].disks)
    };
    let named = |image: &str, serial: &str| (format!("folder/{image}"), serial.to_owned());
    assert_eq!(disks("").0, []);
    assert_eq!(disks("disk = []").0, []);
    let root = named("root.img", "disk0");
    assert_eq!(disks("disk = { image = \"root.img\" }"), (vec![root.clone()], [19, 0, 0, 0, 0, 0, 0, 0]));
    let two = "disk = [\n{ image = \"root.img\" },\n{ image = \"data.img\", serial = \"data\" }]";
    assert_eq!(disks(two), (vec![root.clone(), named("data.img", "data")], [20, 21, 0, 0, 0, 0, 0, 0]));
    let written = site(&with("disk = [{ image = \"a\", changes = \"64M\" }, { image = \"b\" }]"));
    assert_eq!(written.vms[1].disks.iter().map(|disk| disk.changes()).collect::<Vec<_>>(), [64 << 20, 0]);
    let tables = "[[vm.disk]]\nimage = \"root.img\"\n[[vm.disk]]\nimage = \"root.img\"\n";
    let site = site(&format!("{GOOD}{tables}"));
    assert_eq!(site.vms[1].disks.iter().map(|disk| &*disk.serial).collect::<Vec<_>>(), ["disk0", "disk1"]);
    let said = |keys: &str| mistakes(&with(keys));
    assert!(
        said("disk = \"root.img\"")
            .contains("19: disk = \"root.img\": not a table; write disk = { image = \"root.img\"")
    );
    assert!(said("disk = [3]").contains("19: disk = 3: not a table"));
    assert!(said("disk = {}").contains("19: `image` is missing; write for example image = \"root.img\""));
    assert!(said("disk = { image = \"a\", mode = \"private\" }").contains(
        "19: mode: there is no such key; disk = { ... } has image, serial, changes, host, offset, size, read-only"
    ));
    for (changes, what) in [("1M", "2M to 8G"), ("3M", "2M"), ("16G", "2M to 8G")] {
        let said = said(&format!("disk = {{ image = \"a\", changes = \"{changes}\" }}"));
        assert!(said.contains(&format!("19: changes = \"{changes}\": ")) && said.contains(what), "{said}");
    }
    for none in ["\"0\"", "\"0M\""] {
        let said = said(&format!("disk = {{ image = \"a\", changes = {none} }}"));
        let what = "what is written to a disk has 2M to 8G, in steps of 2M; if its guest is not to write it, leave the key out";
        assert_eq!(said, format!("site.toml:19: changes = {none}: {what}"));
    }
    let serial = said("disk = { image = \"a\", serial = \"a b\" }");
    assert!(
        serial.contains("serial = \"a b\": a disk's serial number is 1 to 20 of letters, digits, -, _ and ."),
        "{serial}"
    );
    let twice = said("disk = [{ image = \"a\", serial = \"x\" },\n{ image = \"b\", serial = \"x\" }]");
    assert!(twice.contains("20: serial = \"x\": another disk of the VM has it; each needs its own"), "{twice}");
    let usual = said("disk = [{ image = \"a\", serial = \"disk1\" },\n{ image = \"b\" }]");
    assert!(
        usual.contains("20: its serial number would be disk1, which another disk of the VM has; give it one"),
        "{usual}"
    );
    let first = said("disk = [{ image = \"a\", serial = \"x\" },\n{ serial = \"x\",\nimage = \"b\" }]");
    assert!(first.contains("20: serial = \"x\": another disk"), "where it stands: {first}");
    let many = said(&format!("disk = [{}]", ["{ image = \"a\" }"; 9].join(", ")));
    assert!(many.contains("19: disk: 9 disks; a VM has at most 8"), "{many}");
}

#[test]
fn a_raw_binary_has_an_address() {
    let with = |lines: &str| format!("{GOOD}{lines}\n");
    let raw = |lines: &str| site(&with(lines)).vms[1].program;
    assert_eq!(raw(""), None);
    let at = |load, entry| Some(Raw { load, entry });
    assert_eq!(raw("load = \"0x40200000\""), at(0x4020_0000, 0x4020_0000));
    assert_eq!(raw("load = \"0x4020_0000\"\nentry = \"0x40200104\""), at(0x4020_0000, 0x4020_0104));
    let said = |lines: &str| mistakes(&with(lines));
    for wrong in ["1073741824", "\"1G\"", "\"0x\"", "\"0x40200100\"", "\"0x10000000000000000\""] {
        let said = said(&format!("load = {wrong}"));
        assert!(said.starts_with(&format!("site.toml:21: load = {wrong}: an address in the VM's memory")), "{said}");
        assert!(said.contains("a multiple of 4096"), "{said}");
    }
    assert!(said("load = \"0x40200000\"\nentry = \"0x40200002\"").contains("a multiple of 4: "));
    assert!(said("entry = \"0x40200000\"").contains("leave it out, or add `load`"));
}

/// A site of one VM with these lines, in which no key has the value of its row's example.
fn plain(lines: &str) -> String {
    let required = [("name", "\"a\""), ("vcpus", "1"), ("memory", "\"2M\""), ("kernel", "\"k\"")];
    let is_there = |key: &str| lines.lines().any(|line| line.split(' ').next() == Some(key));
    let required: Vec<_> =
        required.iter().filter(|(key, _)| !is_there(key)).map(|(k, v)| format!("{k} = {v}")).collect();
    format!("[[network]]\nname = \"lan\"\n[[vm]]\n{}\n{lines}\n", required.join("\n"))
}

/// What a key of the VM's table needs, as lines.
fn needed(key: &Key) -> String {
    match key.needs {
        Needs::Nothing | Needs::Without(..) => String::new(),
        Needs::AnyOf(needed) => needed[0].to_owned(),
        Needs::Key(other, _) => format!("{other} = {}", VM.keys.iter().find(|row| row.name == other).unwrap().example),
    }
}

#[test]
fn each_key_of_a_vm_changes_it() {
    let vm = |lines: &str| site(&plain(lines)).vms.remove(0);
    for key in VM.keys {
        let (without, example) = (needed(key), format!("{} = {}", key.name, key.example));
        assert_ne!(vm(&without), vm(&format!("{without}\n{example}")), "{example}");
        if let Absent::Usual(value) = &key.absent {
            let usual = format!("{} = {}", key.name, key.form.shown(value));
            assert_eq!(vm(&without), vm(&format!("{without}\n{usual}")), "{usual} is what it means to leave it out");
        }
    }
}

#[test]
fn each_range_ends_where_its_row_says() {
    let mut ranges = 0;
    for key in VM.keys {
        let (range, step) = match &key.form {
            Form::Number(range, _) | Form::Bound(range, _) => (range, 1),
            Form::Size(_, range, step) => (range, *step),
            _ => continue,
        };
        ranges += 1;
        let text = |value: i128| plain(&format!("{}\n{} = {value}", needed(key), key.name));
        let (least, most, step) = (i128::from(*range.start()), i128::from(*range.end()), i128::from(step));
        for value in [least, least + step, most] {
            site(&text(value));
        }
        for value in [least - step, most + step] {
            assert!(mistakes(&text(value)).contains(&format!("{} = {value}: ", key.name)), "{} = {value}", key.name);
        }
    }
    assert!(ranges >= 10, "{ranges}");
}

#[test]
fn the_page_has_a_line_for_each_key() {
    let page = super::page();
    for key in super::keys::TABLES.iter().flat_map(|table| table.keys) {
        let line = format!("| `{}` | {} |", key.name, key.form.described());
        let says = |other: &&str| other.starts_with(&line) && other.contains(key.says);
        assert_eq!(page.lines().filter(says).count(), 1, "{line}");
    }
    assert!(page.contains("| `vcpus` | a whole number from 1 to 8 | a mistake | `2` | "), "{page}");
    assert!(
        page.contains(
            "| `watchdog-action` | one of \"log\", \"inject\", \"reset\", \"pause\", \"stop\" | `\"reset\"` |"
        )
    );
}
