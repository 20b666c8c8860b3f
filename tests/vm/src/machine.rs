//! What: one life of a node: a qemu process with its control line, its console and its command ports.
//! Owns: qemu's command line, the process.
//! Invariants: the process ends with this value, and with the thread that made it, whatever ends that; only that process is signalled.
//! Does not: know the other nodes.
//! Called by: the lab.

use crate::{
    agent::{PORTS, Ports},
    console::Console,
    disk::{Disk, close_hung},
    image::Image,
    lab::Options,
    qmp::Qmp,
    switch::ADDRESS,
};
use anyhow::{Context, Result};
use deadbolt_trial::children::Tied;
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs::File,
    io::{Read, Seek},
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Command, Stdio},
};

/// Kernel command line of every guest: a panic ends the machine, and nothing is spent on attacks from within it.
const KERNEL: &str = "console=ttyS0 quiet loglevel=5 panic=-1 mitigations=off";

/// A running machine.
#[derive(Debug)]
pub(crate) struct Machine {
    child: Tied,
    /// What qemu itself has to say; empty when all is well.
    said: File,
    pub(crate) qmp: Qmp,
    pub(crate) console: Console,
    pub(crate) ports: Ports,
}

impl Machine {
    /// Starts qemu; the guest boots meanwhile. `node` counts from 1; `network` is its end of the switch.
    pub(crate) fn start(image: &Image, options: &Options, node: u8, nodes: usize, disks: &[Disk], network: &OwnedFd) -> Result<Self> {
        let (qmp, qmp_end) = UnixStream::pair()?;
        let (console, console_end) = UnixStream::pair()?;
        let pairs: Vec<(UnixStream, UnixStream)> = (0..PORTS).map(|_| UnixStream::pair()).collect::<Result<_, _>>()?;
        let (ports, port_ends): (Vec<UnixStream>, Vec<UnixStream>) = pairs.into_iter().unzip();
        let mut command = Command::new("qemu-system-x86_64");
        command.args(machine_arguments(image, options, node, nodes));
        command.args(["-chardev", &format!("socket,id=qmp,fd={}", qmp_end.as_raw_fd()), "-mon", "chardev=qmp,mode=control"]);
        command.args(["-chardev", &format!("socket,id=console,fd={}", console_end.as_raw_fd()), "-serial", "chardev:console"]);
        command.args(["-netdev", &format!("dgram,id=net,local.type=fd,local.str={}", network.as_raw_fd())]);
        let [a, b, c, d, e] = ADDRESS;
        command.args(["-device", &format!("virtio-net-pci,netdev=net,romfile=,mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{node:02x}")]);
        for (index, end) in port_ends.iter().enumerate() {
            command.args(["-chardev", &format!("socket,id=agent{index},fd={}", end.as_raw_fd())]);
            command.args(["-device", &format!("virtserialport,chardev=agent{index},name=agent{index}")]);
        }
        for (index, disk) in disks.iter().enumerate() {
            command.args(disk.arguments(index, options.sector_bytes));
        }
        let said = tempfile::tempfile_in(image.directory())?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said.try_clone()?);
        let ends = [qmp_end.as_raw_fd(), console_end.as_raw_fd(), network.as_raw_fd()];
        pass(&mut command, ends.into_iter().chain(port_ends.iter().map(AsRawFd::as_raw_fd)).collect());
        let child = Tied::spawn(&mut command, None)?;
        // Only qemu has its ends now, so that they close with it.
        drop((qmp_end, console_end, port_ends));
        let mut machine = Qmp::new(qmp).and_then(|qmp| {
            (0..disks.len()).try_for_each(|index| close_hung(&qmp, index))?;
            Ok(Self { child, said: said.try_clone()?, qmp, console: Console::new(console)?, ports: Ports::new(ports) })
        });
        if let Err(error) = machine {
            machine = Err(error).with_context(|| format!("qemu did not start: {}", read_again(&said)));
        }
        machine
    }

    /// Ends or stops the process.
    pub(crate) fn signal(&mut self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.child().id())?);
        // Not reaped yet, so the number is still its.
        kill(pid, signal).with_context(|| format!("{signal} to qemu"))
    }

    /// The last lines of the console and all of qemu's own: for a report of what went wrong.
    pub(crate) fn last_words(&self) -> String {
        let lines = self.console.lines();
        let last = lines.iter().skip(lines.len().saturating_sub(25)).map(|line| line.text.as_str());
        format!("{}{}", last.collect::<Vec<_>>().join("\n"), read_again(&self.said))
    }
}

fn read_again(mut file: &File) -> String {
    let mut text = String::new();
    let _ = file.rewind().and_then(|()| file.read_to_string(&mut text));
    text
}

/// What does not depend on sockets and shared disks.
fn machine_arguments(image: &Image, options: &Options, node: u8, nodes: usize) -> Vec<String> {
    let tags: Vec<&str> = options.shares.iter().map(|(tag, _)| tag.as_str()).collect();
    let kernel_line = format!("{KERNEL} vm.node={node} vm.nodes={nodes} vm.shares={} {}", tags.join(","), options.kernel_line);
    let root = format!("driver=raw,node-name=root,read-only=on,file.driver=file,file.filename={}", image.root().display());
    let (memory, kernel, first) =
        (options.memory_mib.to_string(), image.kernel().display().to_string(), image.first().display().to_string());
    // thread=multi with one processor: the guest runs beside qemu's own loop. q35, because its disks can be pulled out.
    let fixed = [
        ["-M", "q35"],
        ["-accel", "tcg,thread=multi"],
        ["-cpu", "max"],
        ["-m", &memory],
        ["-display", "none"],
        ["-kernel", &kernel],
        ["-initrd", &first],
        ["-append", &kernel_line],
        ["-action", "reboot=shutdown,panic=shutdown,watchdog=reset"],
        ["-device", "pvpanic"],
        ["-device", "virtio-rng-pci"],
        ["-device", "virtio-serial-pci"],
        ["-blockdev", &root],
        ["-device", "virtio-blk-pci,drive=root,serial=root"],
    ];
    let mut arguments: Vec<String> = ["-nodefaults", "-no-user-config"].map(str::to_owned).into();
    arguments.extend(fixed.iter().flatten().map(|word| (*word).to_owned()));
    if options.has_i6300esb {
        arguments.extend(["-device", "i6300esb"].map(str::to_owned));
    }
    for (tag, folder) in &options.shares {
        let folder = folder.display();
        arguments.extend(["-fsdev".to_owned(), format!("local,id={tag},path={folder},security_model=none,readonly=on,multidevs=remap")]);
        arguments.extend(["-device".to_owned(), format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")]);
    }
    arguments
}

/// Lets the child keep these descriptors, under their numbers.
fn pass(command: &mut Command, descriptors: Vec<RawFd>) {
    // SAFETY: only fcntl between fork and exec, on descriptors that the caller holds open until the command was started.
    unsafe {
        command.pre_exec(move || {
            for descriptor in &descriptors {
                // SAFETY: open, as said above.
                fcntl(BorrowedFd::borrow_raw(*descriptor), FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            Ok(())
        });
    }
}
