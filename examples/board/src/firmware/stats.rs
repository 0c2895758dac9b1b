//! What a device says of itself.

use core::fmt::{self, Write};

use nanonsq_core::lookup::PeerState;
use nanonsq_core::publish::State;

use super::{Device, Machine, Network, seconds};
use crate::settings::LOOKUPDS_MAX;

impl<M: Machine> Device<M> {
    pub(super) fn write_stats(&self, out: &mut impl Write) -> fmt::Result {
        writeln!(out, "name       {}, up {} s", self.settings.name, seconds())?;
        match &self.crash {
            Some(crash) => writeln!(out, "crashed    {crash}")?,
            None => writeln!(out, "crashed    not before this start")?,
        }
        if let Some(free) = self.machine.free_stack() {
            writeln!(out, "stack      {free} bytes were never used")?;
        }
        out.write_str("network    ")?;
        match self.network.get() {
            Network::Coming => writeln!(out, "not up yet")?,
            Network::Failed(why) => writeln!(out, "none: {why}")?,
            Network::There(stack) if !stack.is_link_up() => {
                writeln!(out, "no link: is the cable in, the wireless network in reach?")?;
            }
            Network::There(stack) => match stack.config_v4() {
                Some(config) => {
                    write!(out, "{}", config.address)?;
                    if let Some(gateway) = config.gateway {
                        write!(out, ", gateway {gateway}")?;
                    }
                    for server in &config.dns_servers {
                        write!(out, ", name server {server}")?;
                    }
                    writeln!(out)?;
                }
                None => writeln!(out, "a link, but no address: does a DHCP server answer?")?,
            },
        }
        let node = self.node.borrow();
        let Some(node) = node.as_ref() else {
            return match self.settings.advice(self.medium) {
                Some(advice) => writeln!(out, "nsqd       {advice}"),
                None => writeln!(out, "nsqd       waits for the network"),
            };
        };
        let (nsqd, state) = (node.nsqd(), node.state());
        out.write_str("nsqd       ")?;
        if let Some(nsqd) = nsqd {
            write!(out, "{nsqd} ")?;
        }
        out.write_str(match state {
            State::Waiting => "will be dialed again",
            State::Dialing => "is being dialed",
            State::Identifying | State::Authenticating => "is being talked to",
            State::Ready => "is connected",
            State::Closing(_) => "is being left",
            State::Stopped => "was left",
        })?;
        match node.last_failure() {
            Some(why) => writeln!(out, "; last time it ended: {why}")?,
            None => writeln!(out)?,
        }
        for index in 0..LOOKUPDS_MAX {
            let written = node.registry().look(|lookup| {
                let Some(status) = lookup.status(index) else { return Ok(()) };
                let Some(address) = status.address else { return Ok(()) };
                let how = match (status.state, status.settled) {
                    (PeerState::Connected, true) => "has all topics",
                    (PeerState::Connected, false) => "is being told the topics",
                    _ => "is not connected",
                };
                write!(out, "nsqlookupd {address} {how}")?;
                match status.last {
                    Some(why) => writeln!(out, "; last time it ended: {why}"),
                    None => writeln!(out),
                }
            });
            written.unwrap_or(Ok(()))?;
        }
        let counters = node.counters();
        writeln!(
            out,
            "messages   readings={} accepted={} acknowledged={} pending={} rejected={} \
             dropped={} expired={} refused={} possible_duplicates={} connections={} failures={} \
             heartbeats={}",
            node.readings(),
            counters.accepted,
            counters.acknowledged,
            counters.pending,
            counters.rejected,
            counters.dropped,
            counters.expired,
            counters.refused,
            counters.possible_duplicates,
            counters.connections,
            counters.failures,
            counters.heartbeats
        )
    }
}
