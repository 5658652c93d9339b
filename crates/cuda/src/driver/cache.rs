//! Compiled kernels on disk.
//!
//! A file holds the whole text of its key, and a checksum of the machine code: a digest that is shared by two
//! keys, a file cut short or one that was changed is found out when it is read, compiled again and overwritten.
//! Files are written under a name of their own and then renamed, so that nobody reads half of one. A folder that
//! cannot be written costs time only.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tilewright_ir::Result;

/// What a compiled kernel is a function of.
#[derive(Clone, Debug, PartialEq)]
pub struct Key<'a> {
    /// The kernel's text.
    pub text: &'a str,
    /// Of the compiler.
    pub version: (i32, i32),
    /// Compiled for.
    pub architecture: &'a str,
    /// Compiled with.
    pub options: &'a [&'a str],
}

const MAGIC: &[u8] = b"tilewright kernel 1\n";

impl Key<'_> {
    fn bytes(&self) -> Vec<u8> {
        let Key { text, version: (major, minor), architecture, options } = self;
        format!("{major}.{minor}\n{architecture}\n{}\n{text}", options.join("\n")).into_bytes()
    }

    fn file(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{:032x}.cubin", digest(&self.bytes())))
    }
}

/// FNV-1a of 128 bits. Names files; what they hold is compared in full.
fn digest(bytes: &[u8]) -> u128 {
    let step = |hash: u128, byte: &u8| (hash ^ *byte as u128).wrapping_mul(0x1000000000000000000013b);
    bytes.iter().fold(0x6c62272e07bb014262b821756295c58d, step)
}

/// The folder of compiled kernels: `TILEWRIGHT_CACHE`, or `tilewright` in the user's folder for caches.
pub fn folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("TILEWRIGHT_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|caches| caches.join("tilewright")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/tilewright")))
}

/// The machine code of a kernel, from `folder` or else from `compile`, which is then kept there.
///
/// # Errors
/// Those of `compile`.
pub fn get_or_compile(
    folder: Option<&Path>,
    key: &Key,
    compile: impl FnOnce() -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    let Some(folder) = folder else { return compile() };
    let path = key.file(folder);
    if let Some(cubin) = fs::read(&path).ok().and_then(|file| read(&file, key)) {
        return Ok(cubin);
    }
    let cubin = compile()?;
    // Without a place on disk the kernel is compiled again next time, and that is all.
    let _ = store(folder, &path, &file(key, &cubin));
    Ok(cubin)
}

/// A file's bytes: magic, length of the key, key, checksum, machine code.
fn file(key: &Key, cubin: &[u8]) -> Vec<u8> {
    let key = key.bytes();
    let length = (key.len() as u64).to_le_bytes();
    let checksum = digest(cubin).to_le_bytes();
    [MAGIC, &length, &key, &checksum, cubin].concat()
}

/// The machine code, if the file is whole and of this key.
fn read(file: &[u8], key: &Key) -> Option<Vec<u8>> {
    let rest = file.strip_prefix(MAGIC)?;
    let (length, rest) = rest.split_first_chunk::<8>()?;
    let (found, rest) = rest.split_at_checked(u64::from_le_bytes(*length).try_into().ok()?)?;
    let (checksum, cubin) = rest.split_first_chunk::<16>()?;
    (found == key.bytes() && u128::from_le_bytes(*checksum) == digest(cubin)).then(|| cubin.to_vec())
}

fn store(folder: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    fs::create_dir_all(folder)?;
    let unique = format!(".{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let partial = path.with_extension(unique);
    fs::write(&partial, bytes)?;
    fs::rename(&partial, path)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn key(text: &str) -> Key<'_> {
        Key { text, version: (13, 0), architecture: "sm_90a", options: &["-a", "-b"] }
    }

    /// A fresh folder, and a compiler that counts its calls.
    fn with_folder(name: &str, test: impl Fn(&Path, &Cell<usize>)) {
        let folder = std::env::temp_dir().join(format!("tilewright-{name}-{}", std::process::id()));
        test(&folder, &Cell::new(0));
        fs::remove_dir_all(&folder).unwrap();
    }

    fn get(folder: &Path, key: &Key, calls: &Cell<usize>) -> Vec<u8> {
        let compile = || {
            calls.set(calls.get() + 1);
            Ok(key.bytes())
        };
        get_or_compile(Some(folder), key, compile).unwrap()
    }

    #[test]
    fn a_kernel_is_compiled_once_for_each_key() {
        with_folder("once", |folder, calls| {
            for _ in 0..3 {
                assert_eq!(get(folder, &key("x"), calls), key("x").bytes());
            }
            assert_eq!(calls.get(), 1);
            let others = [
                key("y"),
                Key { version: (13, 1), ..key("x") },
                Key { architecture: "sm_80", ..key("x") },
                Key { options: &["-a"], ..key("x") },
            ];
            for (i, other) in others.iter().enumerate() {
                assert_eq!(get(folder, other, calls), other.bytes());
                assert_eq!(calls.get(), 2 + i);
            }
        });
    }

    #[test]
    fn a_damaged_file_is_healed() {
        with_folder("damage", |folder, calls| {
            let good = get(folder, &key("x"), calls);
            let path = key("x").file(folder);
            let whole = fs::read(&path).unwrap();
            let mut changed = whole.clone();
            *changed.last_mut().unwrap() ^= 1;
            let other = file(&key("y"), &good);
            for damaged in [&whole[..whole.len() - 1], &whole[..10], &[], &changed, &other] {
                fs::write(&path, damaged).unwrap();
                let before = calls.get();
                assert_eq!(get(folder, &key("x"), calls), good);
                assert_eq!(calls.get(), before + 1);
                assert_eq!(fs::read(&path).unwrap(), whole);
            }
        });
    }

    #[test]
    fn without_a_place_on_disk_kernels_are_compiled_each_time() {
        with_folder("blocked", |folder, calls| {
            fs::create_dir_all(folder).unwrap();
            // A file where the folder should be.
            let blocked = folder.join("file");
            fs::write(&blocked, "").unwrap();
            for count in 1..3 {
                get(&blocked, &key("x"), calls);
                assert_eq!(calls.get(), count);
            }
        });
    }

    #[test]
    fn a_failure_is_not_kept() {
        with_folder("failure", |folder, calls| {
            let fail = || Err(tilewright_ir::Error::argument("text", "refused"));
            assert!(get_or_compile(Some(folder), &key("x"), fail).is_err());
            get(folder, &key("x"), calls);
            assert_eq!(calls.get(), 1);
        });
    }
}
