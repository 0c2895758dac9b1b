//! The connections of the network: few at a time, looked up for every byte.

use nanonsq_models::server::ConnId;

use super::Conn;

/// Connections in the order in which they came up.
#[derive(Default)]
pub(super) struct Connections(Vec<(ConnId, Box<Conn>)>);

impl Connections {
    fn find(&self, id: ConnId) -> Option<usize> {
        self.0.binary_search_by_key(&id, |entry| entry.0).ok()
    }

    pub(super) fn get(&self, id: ConnId) -> Option<&Conn> {
        self.find(id).map(|at| &*self.0[at].1)
    }

    pub(super) fn get_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.find(id).map(|at| &mut *self.0[at].1)
    }

    /// Adds a connection; its id must be larger than all others.
    pub(super) fn insert(&mut self, id: ConnId, conn: Conn) {
        assert!(self.0.last().is_none_or(|last| last.0 < id), "ids grow");
        self.0.push((id, Box::new(conn)));
    }

    pub(super) fn remove(&mut self, id: ConnId) {
        if let Some(at) = self.find(id) {
            self.0.remove(at);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ConnId, &Conn)> {
        self.0.iter().map(|(id, conn)| (*id, &**conn))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (ConnId, &mut Conn)> {
        self.0.iter_mut().map(|(id, conn)| (*id, &mut **conn))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Conn> {
        self.iter().map(|(_, conn)| conn)
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Conn> {
        self.iter_mut().map(|(_, conn)| conn)
    }
}
