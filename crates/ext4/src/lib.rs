//! Fills an empty ext4 file system, as mke2fs has just made it in an image file, with a tree of
//! files.
//!
//! What mke2fs decides stays as it is: size, features, groups, the inode that lets the file system
//! grow. This crate adds what lies in it, in time proportional to the number of files and their
//! bytes (`mke2fs -d` looks through a directory again for each of its entries).
//!
//! ```text
//!  tree ─▶ source ─▶ fill ─┬─▶ directory (hash) ─┐
//!                          ├─▶ attributes (acl) ─┼─▶ volume: blocks, inodes, ─▶ image file
//!                          └─▶ extents, inode   ─┘   counters, checksums
//! ```
//! The format is that of the kernel's documentation, Documentation/filesystems/ext4. Blocks and
//! inodes are given out in ascending order, so that the file system's used part is dense, and the
//! same tree gives the same bytes.
//!
//! What is filled stays as it is; [`Filled`] tells what a copy of it would have to differ in.
//!
//! Nothing is read from the file system but what mke2fs wrote; the tree must not change meanwhile.
//! Symbolic links are copied, never followed.
#![forbid(unsafe_code)]

mod acl;
mod allocate;
mod attributes;
mod bytes;
mod checksum;
mod directory;
mod error;
mod extents;
mod fill;
mod group;
mod hash;
mod inode;
mod replace;
mod source;
mod superblock;
mod volume;

pub use error::Error;
pub use fill::fill;
pub use replace::{Filled, Patch, Replacement};

/// Bytes of a block; other sizes are refused.
pub(crate) const BLOCK: usize = 4096;

/// A block's content.
pub(crate) type Block = [u8; BLOCK];
