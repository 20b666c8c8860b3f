//! What: whatever bytes a device answers are survived.
//! Owns: nothing.
//! Invariants: none of its own.
//! Does not: judge what is decided.
//! Called by: `cargo test`.

use super::*;

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, cases: 64, ..Default::default() })]
    /// Whatever a device answers, well sealed or not, the register neither panics nor learns from nonsense.
    #[test]
    fn any_bytes_are_survived(seed in proptest::prelude::any::<u64>()) {
        let mut random = Random(seed);
        let mut disk = Disk::formatted(3);
        for slot in (0..3).map(SlotIndex) {
            let life = Life { slot, boot: BootId([1; 16]), incarnation: Incarnation([1; 16]) };
            let mut wild = || [0, 1, 511, 512, u64::MAX - 1, u64::MAX][random.below(6)];
            let (view, entered) = (ViewNumber(wild().max(1)), wild());
            let accepted = wild().min(entered);
            let digest = if accepted == 0 { Digest::NONE } else { Digest([9; 32]) };
            let place = u8::try_from(wild() % 256).unwrap();
            let ballot = Ballot { life, sequence: wild(), view, entered, accepted, digest, place };
            let at = place_at(disk.layout.vote(slot, 1), slot);
            put(&mut disk.bytes, at.offset, &*ballot.encode(&at));
            if wild() == 0 {
                let record = ViewRecord { life, sequence: wild(), view, digest: Digest([8; 32]), place, wall_ms: 0 };
                let at = place_at(disk.layout.record(slot, 0), slot);
                put(&mut disk.bytes, at.offset, &*record.encode(&at));
            }
        }
        let me = Life { slot: SlotIndex(0), boot: BootId([2; 16]), incarnation: Incarnation([2; 16]) };
        let layouts = vec![disk.layout];
        let mut register = Register::new(RegisterConfig { cluster: CLUSTER, me, layouts, seed: 0, wall_offset_ms: 0 });
        register.handle(0, Input::Start);
        register.handle(0, Input::Propose(ViewBody { view: ViewNumber(1), ..ViewBody::default() }));
        for now_ms in 0..300 {
            let Some(output) = register.poll_output() else {
                register.handle(now_ms * 20, Input::Tick);
                continue;
            };
            let Output::Disk(op) = output else { continue };
            let (write, read) = match op.kind {
                DiskOpKind::Read { offset, bytes } => (None, Some((offset, bytes))),
                DiskOpKind::Write { offset, data } => (Some((offset, data)), None),
                DiskOpKind::WriteThenRead { write_offset, data, read_offset, read_bytes } => {
                    (Some((write_offset, data)), Some((read_offset, read_bytes)))
                }
            };
            if let Some((offset, data)) = write {
                put(&mut disk.bytes, offset, &data);
            }
            let mut answer = read.map_or(Vec::new(), |(offset, bytes)| disk.get(offset, bytes).to_vec());
            match random.below(12) {
                0 => answer.truncate(random.below(answer.len() + 1)),
                1 if !answer.is_empty() => answer[random.below(512)] ^= 1,
                2 => answer.fill(0xa5),
                _ => {}
            }
            let result = if random.one_in(20) { Err(IoFailed) } else { Ok(answer.into()) };
            register.handle(now_ms * 20, Input::Disk(DiskDone { tag: op.tag, device: op.device, result }));
        }
    }
}
