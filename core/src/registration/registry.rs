//! The topics and channels of this node: the desired state that every nsqlookupd should list.
//!
//! Topics and channels lie in fixed slots. Each slot records the peers that it was announced to, so
//! the work of a peer is every slot that is desired and not announced, or announced and not
//! desired: there is no queue of changes that could overflow or be reordered (nsqd has one
//! goroutine per change).

use core::fmt;

use crate::name::{ChannelName, TopicName};
use crate::wire::nsqlookupd::Command;

/// The most nsqlookupds of a registry: each has a bit in a byte.
pub const PEERS_MAX: usize = 8;

/// Topics and channels, in fixed slots.
///
/// RAM: 67 bytes a topic, 70 bytes a channel. A removed name keeps its slot until no connected
/// nsqlookupd lists it any more.
#[derive(Debug)]
pub(super) struct Registry<const TOPICS: usize, const CHANNELS: usize> {
    topics: [TopicSlot; TOPICS],
    channels: [ChannelSlot; CHANNELS],
}

/// No slot is left. The registry is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum RegistryFull {
    /// All topic slots are taken.
    Topics {
        /// The number of topic slots.
        max: usize,
    },
    /// All channel slots are taken.
    Channels {
        /// The number of channel slots.
        max: usize,
    },
}

impl fmt::Display for RegistryFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topics { max } => write!(f, "all {max} topic slots of the registry are taken"),
            Self::Channels { max } => {
                write!(f, "all {max} channel slots of the registry are taken")
            }
        }
    }
}

impl core::error::Error for RegistryFull {}

#[derive(Debug, Clone, Copy)]
struct TopicSlot {
    name: TopicName,
    desired: bool,
    announced: PeerSet,
}

#[derive(Debug, Clone, Copy)]
struct ChannelSlot {
    name: ChannelName,
    topic: u16,
    desired: bool,
    announced: PeerSet,
}

/// A set of peers, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PeerSet(u8);

impl PeerSet {
    const NONE: Self = Self(0);

    const fn has(self, peer: PeerId) -> bool {
        self.0 & peer.0 != 0
    }

    fn set(&mut self, peer: PeerId, announced: bool) {
        if announced {
            self.0 |= peer.0;
        } else {
            self.0 &= !peer.0;
        }
    }
}

/// The bit of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PeerId(u8);

impl PeerId {
    /// Returns the id of the peer in slot `index`, below [`PEERS_MAX`].
    pub(super) const fn new(index: usize) -> Self {
        Self(1u8.unbounded_shl(index as u32))
    }
}

impl<const TOPICS: usize, const CHANNELS: usize> Registry<TOPICS, CHANNELS> {
    const LIMITS: () = assert!(TOPICS <= 4096 && CHANNELS <= 4096, "at most 4096 slots of a kind");

    /// Creates an empty registry.
    pub(super) const fn new() -> Self {
        let () = Self::LIMITS;
        Self {
            topics: [const {
                TopicSlot { name: TopicName::NONE, desired: false, announced: PeerSet::NONE }
            }; TOPICS],
            channels: [const {
                ChannelSlot {
                    name: ChannelName::NONE,
                    topic: 0,
                    desired: false,
                    announced: PeerSet::NONE,
                }
            }; CHANNELS],
        }
    }

    /// Makes a topic desired. Doing so twice changes nothing.
    pub(super) fn add_topic(&mut self, topic: &TopicName) -> Result<(), RegistryFull> {
        self.view().add_topic(topic).map(|_| ())
    }

    /// Makes a channel desired, and its topic with it, as nsqlookupd does.
    pub(super) fn add_channel(
        &mut self,
        topic: &TopicName,
        channel: &ChannelName,
    ) -> Result<(), RegistryFull> {
        self.view().add_channel(topic, channel)
    }

    /// Makes a topic and its channels not desired; returns whether the topic was desired.
    pub(super) fn remove_topic(&mut self, topic: &TopicName) -> bool {
        self.view().remove_topic(topic)
    }

    /// Makes a channel not desired; returns whether it was desired. Its topic stays.
    pub(super) fn remove_channel(&mut self, topic: &TopicName, channel: &ChannelName) -> bool {
        self.view().remove_channel(topic, channel)
    }

    /// Returns the desired topics, in no order.
    pub(super) fn topics(&self) -> impl Iterator<Item = &TopicName> {
        self.topics.iter().filter(|slot| slot.desired).map(|slot| &slot.name)
    }

    /// Returns the desired channels, in no order, each with its topic.
    pub(super) fn channels(&self) -> impl Iterator<Item = (&TopicName, &ChannelName)> {
        self.channels.iter().filter(|slot| slot.desired).filter_map(|slot| {
            self.topics.get(usize::from(slot.topic)).map(|topic| (&topic.name, &slot.name))
        })
    }

    /// Makes all topics and channels not desired.
    pub(super) fn remove_all(&mut self) {
        self.topics.iter_mut().for_each(|slot| slot.desired = false);
        self.channels.iter_mut().for_each(|slot| slot.desired = false);
    }

    /// Returns whether the state announced to a peer is the desired one.
    pub(super) fn is_settled(&self, peer: PeerId) -> bool {
        self.topics.iter().all(|slot| slot.desired == slot.announced.has(peer))
            && self.channels.iter().all(|slot| slot.desired == slot.announced.has(peer))
    }

    /// Returns the registry without its capacities, so that the logic is compiled once.
    pub(super) fn view(&mut self) -> RegistryView<'_> {
        RegistryView { topics: &mut self.topics, channels: &mut self.channels }
    }
}

#[derive(Debug)]
pub(super) struct RegistryView<'r> {
    topics: &'r mut [TopicSlot],
    channels: &'r mut [ChannelSlot],
}

impl RegistryView<'_> {
    fn add_topic(&mut self, topic: &TopicName) -> Result<usize, RegistryFull> {
        let max = self.topics.len();
        let index = match self.find_topic(topic) {
            Some(index) => index,
            None => self
                .topics
                .iter()
                .position(|slot| !slot.desired && slot.announced == PeerSet::NONE)
                .ok_or(RegistryFull::Topics { max })?,
        };
        if let Some(slot) = self.topics.get_mut(index) {
            slot.name = *topic;
            slot.desired = true;
        }
        Ok(index)
    }

    fn add_channel(
        &mut self,
        topic: &TopicName,
        channel: &ChannelName,
    ) -> Result<(), RegistryFull> {
        let max = self.channels.len();
        let slot = match self.find_channel(topic, channel) {
            Some(slot) => slot,
            None => self
                .channels
                .iter()
                .position(|slot| !slot.desired && slot.announced == PeerSet::NONE)
                .ok_or(RegistryFull::Channels { max })?,
        };
        // The topic last: if there is no slot for it, nothing has changed.
        let topic = self.add_topic(topic)?;
        if let Some(slot) = self.channels.get_mut(slot) {
            slot.name = *channel;
            slot.topic = topic as u16;
            slot.desired = true;
        }
        Ok(())
    }

    fn remove_topic(&mut self, topic: &TopicName) -> bool {
        let Some(index) = self.find_topic(topic) else { return false };
        for slot in self.channels.iter_mut().filter(|slot| usize::from(slot.topic) == index) {
            slot.desired = false;
        }
        self.topics.get_mut(index).is_some_and(|slot| core::mem::take(&mut slot.desired))
    }

    fn remove_channel(&mut self, topic: &TopicName, channel: &ChannelName) -> bool {
        self.find_channel(topic, channel)
            .and_then(|index| self.channels.get_mut(index))
            .is_some_and(|slot| core::mem::take(&mut slot.desired))
    }

    fn find_topic(&self, topic: &TopicName) -> Option<usize> {
        self.topics.iter().position(|slot| {
            (slot.desired || slot.announced != PeerSet::NONE) && slot.name == *topic
        })
    }

    fn find_channel(&self, topic: &TopicName, channel: &ChannelName) -> Option<usize> {
        let topic = self.find_topic(topic)?;
        self.channels.iter().position(|slot| {
            (slot.desired || slot.announced != PeerSet::NONE)
                && usize::from(slot.topic) == topic
                && slot.name == *channel
        })
    }

    /// Marks all as not announced to a peer: with its connection, nsqlookupd forgets what was
    /// announced.
    pub(super) fn forget(&mut self, peer: PeerId) {
        self.topics.iter_mut().for_each(|slot| slot.announced.set(peer, false));
        self.channels.iter_mut().for_each(|slot| slot.announced.set(peer, false));
    }

    /// Returns the next difference between the desired state and the state announced to a peer.
    ///
    /// Channels go before their topic, both ways: registering a channel registers its topic, and
    /// unregistering a topic first would leave nsqlookupd to remove its channels.
    pub(super) fn next_work(&self, peer: PeerId) -> Option<Work> {
        let differs = |desired: bool, announced: PeerSet, register: bool| {
            desired == register && announced.has(peer) != register
        };
        for register in [false, true] {
            for (index, slot) in self.channels.iter().enumerate() {
                if differs(slot.desired, slot.announced, register) {
                    return Some(Work { register, item: Item::Channel(index) });
                }
            }
            for (index, slot) in self.topics.iter().enumerate() {
                if differs(slot.desired, slot.announced, register) {
                    return Some(Work { register, item: Item::Topic(index) });
                }
            }
        }
        None
    }

    /// Returns the next registration, from `cursor` on, that was announced to a peer and is to be
    /// announced again; moves `cursor` behind it.
    pub(super) fn next_reassert(&self, peer: PeerId, cursor: &mut usize) -> Option<Work> {
        let channels = self.channels.len();
        while *cursor < channels.saturating_add(self.topics.len()) {
            let at = *cursor;
            *cursor = at.saturating_add(1);
            let (item, desired, announced) = match at.checked_sub(channels) {
                None => match self.channels.get(at) {
                    Some(slot) => (Item::Channel(at), slot.desired, slot.announced),
                    None => continue,
                },
                Some(topic) => match self.topics.get(topic) {
                    // Registering its channels registers the topic.
                    Some(slot) => (
                        Item::Topic(topic),
                        slot.desired && !self.has_channels(topic),
                        slot.announced,
                    ),
                    None => continue,
                },
            };
            if desired && announced.has(peer) {
                return Some(Work { register: true, item });
            }
        }
        None
    }

    fn has_channels(&self, topic: usize) -> bool {
        self.channels.iter().any(|slot| slot.desired && usize::from(slot.topic) == topic)
    }

    /// Returns the command that does `work`.
    pub(super) fn command(&self, work: Work) -> Option<Command<'_>> {
        let (topic, channel) = match work.item {
            Item::Topic(index) => (index, None),
            Item::Channel(index) => {
                let slot = self.channels.get(index)?;
                (usize::from(slot.topic), Some(&slot.name))
            }
        };
        let topic = &self.topics.get(topic)?.name;
        Some(if work.register {
            Command::Register { topic, channel }
        } else {
            Command::Unregister { topic, channel }
        })
    }

    /// Notes that the command for `work` is on its way to the peer.
    pub(super) fn announced(&mut self, peer: PeerId, work: Work) {
        let topic = match work.item {
            Item::Topic(index) => index,
            Item::Channel(index) => {
                let Some(slot) = self.channels.get_mut(index) else { return };
                slot.announced.set(peer, work.register);
                if !work.register {
                    return;
                }
                slot.topic.into()
            }
        };
        if let Some(slot) = self.topics.get_mut(topic) {
            slot.announced.set(peer, work.register);
        }
    }
}

/// One REGISTER or UNREGISTER.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Work {
    register: bool,
    item: Item,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    Topic(usize),
    Channel(usize),
}
