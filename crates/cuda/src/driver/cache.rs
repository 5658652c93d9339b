//! Compiled kernels on disk.
//!
//! A file holds the whole text of its key, and a checksum of the machine code: a digest that is shared by two
//! keys, a file cut short or one that was changed is found out when it is read, compiled again and overwritten.
//! Files are written under a name of their own and then renamed, so that nobody reads half of one. A folder that
//! cannot be written costs time only. One that others may write to is not used at all, since what they put there
//! would run on the GPU; such a file is made again. Whatever is amiss is told once.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tilewright_ir::Result;

use super::owner;

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

/// What is amiss with kernels on disk. Kernels are then compiled again, and all goes on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Problem {
    /// A file is not what was written, or others may write to it.
    Damaged {
        /// The file.
        file: PathBuf,
        /// In what way.
        why: String,
    },
    /// Others may write to the folder: it is not used.
    Shared {
        /// The folder.
        folder: PathBuf,
        /// Who may.
        why: String,
    },
    /// Nothing can be read from the folder or written to it.
    Unusable {
        /// The folder.
        folder: PathBuf,
        /// What the system says.
        why: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Problem::Damaged { file, why } => {
                write!(f, "{} is not used, as {why}; it is made again", file.display())
            }
            Problem::Shared { folder, why } => {
                write!(f, "{} is not used, as {why}; kernels are compiled each time", folder.display())
            }
            Problem::Unusable { folder, why } => {
                write!(f, "{} cannot be used: {why}; kernels are compiled each time", folder.display())
            }
        }
    }
}

/// Tells of a problem on standard error, of each kind the first one of this process.
pub fn warn(problem: Problem) {
    static TOLD: Mutex<Option<HashSet<std::mem::Discriminant<Problem>>>> = Mutex::new(None);
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if told.get_or_insert_default().insert(std::mem::discriminant(&problem)) {
        eprintln!("warning: Tilewright's compiled kernels: {problem}");
    }
}

/// The machine code of a kernel, from `folder` or else from `compile`, which is then kept there. What is amiss with the
/// folder is told to `warn`.
///
/// # Errors
/// Those of `compile`.
pub fn get_or_compile(
    folder: Option<&Path>,
    key: &Key,
    warn: impl Fn(Problem),
    compile: impl FnOnce() -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    let Some(folder) = folder else { return compile() };
    let path = key.file(folder);
    match load(folder, &path, key) {
        Ok(Some(cubin)) => return Ok(cubin),
        Ok(None) => {}
        Err(problem @ Problem::Damaged { .. }) => warn(problem),
        Err(problem @ (Problem::Shared { .. } | Problem::Unusable { .. })) => {
            warn(problem);
            return compile();
        }
    }
    let cubin = compile()?;
    if let Err(error) = store(folder, &path, &file(key, &cubin)) {
        warn(Problem::Unusable { folder: folder.into(), why: error.to_string() });
    }
    Ok(cubin)
}

/// The machine code that is kept for a key, if there is any. What the file allows is asked of the file that was opened,
/// so that nobody can put another in its place in between.
fn load(folder: &Path, path: &Path, key: &Key) -> std::result::Result<Option<Vec<u8>>, Problem> {
    let unusable =
        |error: std::io::Error| Problem::Unusable { folder: folder.into(), why: error.to_string() };
    let damaged = |why| Problem::Damaged { file: path.into(), why };
    match fs::metadata(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unusable(error)),
        Ok(metadata) => {
            if let Some(why) = owner::stranger(&metadata) {
                return Err(Problem::Shared { folder: folder.into(), why });
            }
        }
    }
    let mut opened = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(unusable)?,
    };
    if let Some(why) = owner::stranger(&opened.metadata().map_err(unusable)?) {
        return Err(damaged(why));
    }
    let mut bytes = Vec::new();
    opened.read_to_end(&mut bytes).map_err(unusable)?;
    read(&bytes, key).map(Some).ok_or_else(|| damaged("it is not what was written".into()))
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
    owner::create_folder(folder)?;
    let unique = format!(".{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let partial = path.with_extension(unique);
    owner::create_file(&partial, bytes)?;
    fs::rename(&partial, path)
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    fn key(text: &str) -> Key<'_> {
        Key { text, version: (13, 0), architecture: "sm_90a", options: &["-a", "-b"] }
    }

    /// A fresh folder, with a compiler that counts its calls, and what was amiss.
    struct Case {
        folder: PathBuf,
        calls: Cell<usize>,
        problems: RefCell<Vec<Problem>>,
    }

    impl Case {
        fn new(name: &str) -> Case {
            let folder = std::env::temp_dir().join(format!("tilewright-{name}-{}", std::process::id()));
            Case { folder, calls: Cell::new(0), problems: RefCell::default() }
        }

        fn get(&self, key: &Key) -> Vec<u8> {
            self.get_in(&self.folder, key)
        }

        fn get_in(&self, folder: &Path, key: &Key) -> Vec<u8> {
            let compile = || {
                self.calls.set(self.calls.get() + 1);
                Ok(key.bytes())
            };
            let warn = |problem| self.problems.borrow_mut().push(problem);
            get_or_compile(Some(folder), key, warn, compile).unwrap()
        }

        /// What is found amiss, and how often was compiled, while a kernel is got, which is as good as ever.
        fn found(&self, folder: &Path, key: &Key) -> (Vec<Problem>, usize) {
            let before = self.calls.get();
            assert_eq!(self.get_in(folder, key), key.bytes());
            (self.problems.take(), self.calls.get() - before)
        }
    }

    impl Drop for Case {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }

    #[test]
    fn a_kernel_is_compiled_once_for_each_key() {
        let case = Case::new("once");
        for _ in 0..3 {
            assert_eq!(case.get(&key("x")), key("x").bytes());
        }
        assert_eq!(case.calls.get(), 1);
        let others = [
            key("y"),
            Key { version: (13, 1), ..key("x") },
            Key { architecture: "sm_80", ..key("x") },
            Key { options: &["-a"], ..key("x") },
        ];
        for (i, other) in others.iter().enumerate() {
            assert_eq!(case.get(other), other.bytes());
            assert_eq!(case.calls.get(), 2 + i);
        }
        assert_eq!(case.problems.take(), []);
    }

    #[test]
    fn a_damaged_file_is_told_of_and_healed() {
        let case = Case::new("damage");
        let good = case.get(&key("x"));
        let path = key("x").file(&case.folder);
        let whole = fs::read(&path).unwrap();
        let mut changed = whole.clone();
        *changed.last_mut().unwrap() ^= 1;
        let other = file(&key("y"), &good);
        let mut version = whole.clone();
        version[MAGIC.len() - 2] += 1;
        for damaged in [&whole[..whole.len() - 1], &whole[..10], &[], &changed, &other, &version] {
            fs::write(&path, damaged).unwrap();
            let damage = Problem::Damaged { file: path.clone(), why: "it is not what was written".into() };
            assert_eq!(case.found(&case.folder, &key("x")), (vec![damage], 1));
            assert_eq!(fs::read(&path).unwrap(), whole);
            assert_eq!(case.found(&case.folder, &key("x")), (vec![], 0));
        }
    }

    #[test]
    fn without_a_place_on_disk_kernels_are_compiled_each_time() {
        let case = Case::new("blocked");
        fs::create_dir_all(&case.folder).unwrap();
        // A file where the folder should be, itself or above.
        let blocked = case.folder.join("file");
        owner::create_file(&blocked, b"").unwrap();
        for folder in [blocked.clone(), blocked.join("within")] {
            for _ in 0..2 {
                let (problems, calls) = case.found(&folder, &key("x"));
                assert!(matches!(&problems[..], [Problem::Unusable { folder: told, .. }] if *told == folder));
                assert_eq!(calls, 1);
            }
        }
    }

    #[test]
    fn a_failure_is_not_kept() {
        let case = Case::new("failure");
        let fail = || Err(tilewright_ir::Error::argument("text", "refused"));
        assert!(get_or_compile(Some(&case.folder), &key("x"), |_| (), fail).is_err());
        case.get(&key("x"));
        assert_eq!(case.calls.get(), 1);
    }

    #[cfg(unix)]
    fn permit(path: &Path, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[cfg(unix)]
    fn mode(path: &Path) -> u32 {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_others_may_write_to_is_neither_read_nor_written() {
        let case = Case::new("shared");
        case.get(&key("x"));
        assert_eq!(mode(&case.folder), 0o700);
        for shared in [0o720, 0o702, 0o777] {
            permit(&case.folder, shared);
            let why = format!("its mode {shared:o} lets others write to it");
            let told = Problem::Shared { folder: case.folder.clone(), why };
            assert_eq!(case.found(&case.folder, &key("x")), (vec![told.clone()], 1));
            assert_eq!(case.found(&case.folder, &key("y")), (vec![told], 1));
            assert!(!key("y").file(&case.folder).exists());
        }
        permit(&case.folder, 0o700);
        assert_eq!(case.found(&case.folder, &key("x")), (vec![], 0));
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_may_write_to_is_made_again() {
        let case = Case::new("file");
        case.get(&key("x"));
        let path = key("x").file(&case.folder);
        assert_eq!(mode(&path), 0o600);
        for shared in [0o620, 0o602] {
            permit(&path, shared);
            let why = format!("its mode {shared:o} lets others write to it");
            let told = Problem::Damaged { file: path.clone(), why };
            assert_eq!(case.found(&case.folder, &key("x")), (vec![told], 1));
            assert_eq!(mode(&path), 0o600);
        }
    }

    /// Only who may give files away can make one that another user owns.
    #[cfg(unix)]
    #[test]
    fn what_another_user_owns_is_not_read() {
        use std::os::unix::fs::chown;
        let case = Case::new("owner");
        case.get(&key("x"));
        let path = key("x").file(&case.folder);
        let by = |why: &str| why.starts_with("user 65534 owns it");
        if chown(&path, Some(65534), None).is_ok() {
            let (problems, calls) = case.found(&case.folder, &key("x"));
            assert!(matches!(&problems[..], [Problem::Damaged { why, .. }] if by(why)), "{problems:?}");
            assert_eq!(calls, 1);
        }
        if chown(&case.folder, Some(65534), None).is_ok() {
            let (problems, calls) = case.found(&case.folder, &key("x"));
            assert!(matches!(&problems[..], [Problem::Shared { why, .. }] if by(why)), "{problems:?}");
            assert_eq!(calls, 1);
        }
    }

    #[test]
    fn a_problem_says_what_and_where() {
        let shared =
            Problem::Shared { folder: "/a".into(), why: "its mode 777 lets others write to it".into() };
        let expected =
            "/a is not used, as its mode 777 lets others write to it; kernels are compiled each time";
        assert_eq!(shared.to_string(), expected);
    }
}
