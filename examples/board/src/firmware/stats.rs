//! The output of the console's `stats`.

use core::fmt::{self, Write};

use super::{Device, Machine, Network, seconds};

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
            Network::Starting => writeln!(out, "not up yet")?,
            Network::Failed(why) => writeln!(out, "none: {why}")?,
            Network::Started(stack) if !stack.is_link_up() => {
                writeln!(out, "no link: is the cable in, the wireless network in reach?")?;
            }
            Network::Started(stack) => match stack.config_v4() {
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
        node.write(out)
    }
}
