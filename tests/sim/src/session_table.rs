//! A table with a slot for each session of each actor.

use crate::watch::Session;

/// See the [module](self).
pub(crate) struct SessionTable<T>(Vec<Vec<Option<T>>>);

impl<T> Default for SessionTable<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> SessionTable<T> {
    pub(crate) fn get(&self, (actor, machine): Session) -> Option<&T> {
        self.0.get(actor)?.get(machine)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, (actor, machine): Session) -> Option<&mut T> {
        self.0.get_mut(actor)?.get_mut(machine)?.as_mut()
    }

    /// Stores a value and returns the previous one.
    pub(crate) fn insert(&mut self, (actor, machine): Session, new: T) -> Option<T> {
        if self.0.len() <= actor {
            self.0.resize_with(actor + 1, Vec::new);
        }
        let row = &mut self.0[actor];
        if row.len() <= machine {
            row.resize_with(machine + 1, || None);
        }
        row[machine].replace(new)
    }

    pub(crate) fn remove(&mut self, (actor, machine): Session) -> Option<T> {
        self.0.get_mut(actor)?.get_mut(machine)?.take()
    }

    /// Removes and returns all values of an actor, in order.
    pub(crate) fn take_all(&mut self, actor: usize) -> impl Iterator<Item = (Session, T)> {
        let row = self.0.get_mut(actor).into_iter().flatten().enumerate();
        row.filter_map(move |(machine, slot)| Some(((actor, machine), slot.take()?)))
    }
}
