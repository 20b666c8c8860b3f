//! Beat, mailbox, watchdog and fencer; the drop-in sbd.
