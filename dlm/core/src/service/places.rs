//! What: the resources that this node has to do with, found by name: as holder, as master, as home.
//! Owns: the index from names to numbers.
//! Invariants: a resource has one place; a place exists while the node has a lock on it, is its master, or knows its master as home.
//! Does not: know queues or operations.
//! Called by: `service`.

use crate::name::Key;
use crate::peers::PeerId;
use crate::slab::Slab;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::hash::BuildHasher;
use core::num::NonZeroU8;
use foldhash::fast::FixedState;
use hashbrown::HashTable;

/// Names up to this length stand in the place itself (what GFS2 and OCFS2 use is not longer, but for OCFS2's 31).
const SHORT: usize = 24;

/// What this node has to do with a resource.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) lockspace: u32,
    name: [u8; SHORT],
    /// Over [`SHORT`]: the name stands in `Places::long`.
    length: NonZeroU8,
    /// As holder: the master, where it is known; without a lock here, who was it lately.
    pub(super) master: Option<PeerId>,
    /// As home: whom it made master.
    pub(super) appointed: Option<PeerId>,
    /// Number of the last appointment: at the home its last, at the master the one it goes by.
    pub(super) stamp: u32,
    /// As holder: locks of this node's sessions.
    pub(super) locks: u32,
    /// As master: the queues; 0: not master, or there is only the lock `lone`.
    pub(super) mastered: u32,
    /// As master: the one lock there is, granted to this node and without anything that queues have to know, or [`KEPT`]; else 0.
    pub(super) lone: u32,
    /// It stands in the list of what is kept, or did when it was last looked at.
    pub(super) is_listed: bool,
    /// It was used since.
    pub(super) is_fresh: bool,
}

/// As `lone`: there is no lock at all, and mastery is kept nevertheless.
pub(super) const KEPT: u32 = u32::MAX;

/// There are millions of them.
const _: () = assert!(size_of::<Option<Place>>() == 52);

impl Place {
    pub(super) fn is_master(&self) -> bool {
        self.mastered != 0 || self.lone != 0
    }

    /// Master of a resource without a lock.
    pub(super) fn is_kept(&self) -> bool {
        self.lone == KEPT
    }

    /// There is nothing here but the memory of a master.
    pub(super) fn is_remembered(&self) -> bool {
        self.locks == 0 && self.master.is_some()
    }

    fn is_used(&self) -> bool {
        self.locks != 0 || self.is_master() || self.appointed.is_some() || self.master.is_some()
    }
}

/// Places by number and by name.
#[derive(Debug)]
pub(super) struct Places {
    slab: Slab<Place>,
    index: HashTable<u32>,
    long: BTreeMap<u32, Box<[u8]>>,
    hasher: FixedState,
}

fn name_of<'a>(long: &'a BTreeMap<u32, Box<[u8]>>, number: u32, place: &'a Place) -> &'a [u8] {
    match place.name.get(..usize::from(place.length.get())) {
        Some(name) => name,
        None => long.get(&number).map_or(&[], |name| name),
    }
}

impl Places {
    /// The seed keeps clients from choosing names that collide.
    pub(super) fn new(seed: u64) -> Self {
        Self { slab: Slab::default(), index: HashTable::new(), long: BTreeMap::new(), hasher: FixedState::with_seed(seed) }
    }

    fn hash(&self, lockspace: u32, name: &[u8]) -> u64 {
        self.hasher.hash_one((lockspace, name))
    }

    pub(super) fn find(&self, key: &Key) -> Option<u32> {
        self.find_hashed(self.hash(key.lockspace, key.name()), key)
    }

    fn find_hashed(&self, hash: u64, key: &Key) -> Option<u32> {
        let is_it = |number: &u32| {
            let place = self.slab.get(*number);
            place.is_some_and(|place| place.lockspace == key.lockspace && name_of(&self.long, *number, place) == key.name())
        };
        self.index.find(hash, is_it).copied()
    }

    /// The place of a resource, made if there is none; 0 when there is no number left.
    pub(super) fn intern(&mut self, key: &Key) -> u32 {
        let bytes = key.name();
        let hash = self.hash(key.lockspace, bytes);
        if let Some(number) = self.find_hashed(hash, key) {
            return number;
        }
        let mut name = [0; SHORT];
        let is_short = match name.get_mut(..bytes.len()) {
            Some(front) => {
                front.copy_from_slice(bytes);
                true
            }
            None => false,
        };
        let place = Place {
            lockspace: key.lockspace,
            name,
            length: u8::try_from(bytes.len()).ok().and_then(NonZeroU8::new).unwrap_or(NonZeroU8::MAX),
            master: None,
            appointed: None,
            stamp: 0,
            locks: 0,
            mastered: 0,
            lone: 0,
            is_listed: false,
            is_fresh: false,
        };
        let number = self.slab.insert(place);
        if number == 0 {
            return 0;
        }
        if !is_short {
            self.long.insert(number, bytes.into());
        }
        let (slab, long, hasher) = (&self.slab, &self.long, &self.hasher);
        let rehash = |number: &u32| slab.get(*number).map_or(0, |place| hasher.hash_one((place.lockspace, name_of(long, *number, place))));
        self.index.insert_unique(hash, number, rehash);
        number
    }

    pub(super) fn get(&self, number: u32) -> Option<&Place> {
        self.slab.get(number)
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut Place> {
        self.slab.get_mut(number)
    }

    /// The name of a place; none for a number that stands for no place.
    pub(super) fn key(&self, number: u32) -> Option<Key> {
        let place = self.slab.get(number)?;
        Key::new(place.lockspace, name_of(&self.long, number, place))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Place)> {
        self.slab.iter()
    }

    /// The numbers in use among the `count` from `first` on, and where to go on; 0: that was the end.
    pub(super) fn slice(&self, first: u32, count: u32) -> (Vec<u32>, u32) {
        self.slab.slice(first, count)
    }

    /// Forgets a place that this node has nothing to do with any more.
    pub(super) fn forget_if_unused(&mut self, number: u32) {
        let Some(place) = self.slab.get(number).filter(|place| !place.is_used()) else { return };
        let hash = self.hash(place.lockspace, name_of(&self.long, number, place));
        if let Ok(entry) = self.index.find_entry(hash, |other| *other == number) {
            entry.remove();
        }
        if usize::from(place.length.get()) > SHORT {
            self.long.remove(&number);
        }
        self.slab.remove(number);
    }
}
