//! Users and groups by the files of the image. No name service: a static program has none. Where
//! the files say nothing, it is as container engines have it: a number is itself, with group 0 and
//! `/` as its home.

use std::path::Path;

use crate::image_files;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";
/// The next one means "none" to setuid(2).
const LARGEST_ID: u32 = u32::MAX - 1;

/// As whom a program runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups, the primary one included.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
    /// Shell, where the image names one.
    pub shell: Option<String>,
}

/// Resolves `user[:group]`; empty is root.
pub fn resolve(text: &str) -> Result<User, String> {
    let files = [image_files::read(PASSWD), image_files::read(GROUP)];
    let [passwd, group] = files.each_ref().map(|file| file.as_deref().ok());
    resolve_in(text, passwd, group).map_err(|mut error| {
        for (path, file) in [PASSWD, GROUP].into_iter().zip(files) {
            if let Err(reason) = file
                && Path::new(path).symlink_metadata().is_ok()
            {
                error.push_str(&format!(" ({reason})"));
            }
        }
        error
    })
}

fn resolve_in(text: &str, passwd: Option<&str>, group: Option<&str>) -> Result<User, String> {
    let (name, group_name) =
        text.split_once(':').map_or((text, None), |(name, group)| (name, Some(group)));
    let name = if name.is_empty() { "root" } else { name };
    let number = number("user", name)?;
    let entries = || lines(passwd);
    let by_name = entries().find(|fields| fields.first() == Some(&name));
    let by_number = || entries().find(|fields| number.is_some() && id(fields, 2) == number);
    let entry = by_name.or_else(by_number);
    let (account, uid, gid, home) = match (&entry, number) {
        (Some(fields), _) => {
            let uid = id(fields, 2)
                .ok_or_else(|| format!("user {name} has no usable id in /etc/passwd"))?;
            let home = fields.get(5).filter(|home| !home.is_empty()).unwrap_or(&"/");
            (fields[0], uid, id(fields, 3).unwrap_or(0), (*home).to_owned())
        }
        (None, Some(number)) => ("", number, 0, "/".to_owned()),
        (None, None) if name == "root" => ("root", 0, 0, "/root".to_owned()),
        (None, None) if passwd.is_none() => {
            return Err(format!("user {name} is unknown: the image has no /etc/passwd"));
        }
        (None, None) => return Err(format!("user {name} is not in the image's /etc/passwd")),
    };
    let gid = match group_name.filter(|name| !name.is_empty()) {
        None => gid,
        Some(wanted) => {
            let number = self::number("group", wanted)?;
            lines(group)
                .find(|fields| fields.first() == Some(&wanted))
                .and_then(|fields| id(&fields, 2))
                .or(number)
                .ok_or_else(|| format!("group {wanted} is not in the image's /etc/group"))?
        }
    };
    let mut all = vec![gid];
    // As docker has it: a group that is named stands alone.
    if group_name.is_none() && !account.is_empty() {
        let member = |fields: &Vec<&str>| {
            fields.get(3).is_some_and(|users| users.split(',').any(|user| user.trim() == account))
        };
        all.extend(
            lines(group).filter(member).filter_map(|fields| id(&fields, 2)).filter(|id| *id != gid),
        );
    }
    let shell = entry.as_ref().and_then(|fields| fields.get(6)).filter(|shell| !shell.is_empty());
    Ok(User { uid, gid, groups: all, home, shell: shell.map(|shell| (*shell).to_owned()) })
}

/// The fields of each line.
fn lines(file: Option<&str>) -> impl Iterator<Item = Vec<&str>> {
    file.unwrap_or_default().lines().map(|line| line.trim().split(':').collect())
}

fn id(fields: &[&str], at: usize) -> Option<u32> {
    fields.get(at)?.trim().parse().ok().filter(|id| *id <= LARGEST_ID)
}

/// A user or group given by its number; `None` for a name. A number that no process can have is an
/// error.
fn number(what: &str, text: &str) -> Result<Option<u32>, String> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(number) if number <= LARGEST_ID => Ok(Some(number)),
        _ => Err(format!("{what} {text} is not possible: numbers go from 0 to {LARGEST_ID}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str =
        "root:x:0:0:root:/root:/bin/sh\nwww:x:1000:1001::/var/www:/bin/sh\nbroken\n";
    const GROUPS: &str = "root:x:0:\nstaff:x:50:www,other\nwww:x:1001:www\nextra:x:60:\n";

    fn user(text: &str) -> Result<User, String> {
        resolve_in(text, Some(USERS), Some(GROUPS))
    }

    fn ids(text: &str) -> (u32, u32, Vec<u32>, String) {
        let user = user(text).unwrap();
        (user.uid, user.gid, user.groups, user.home)
    }

    #[test]
    fn names_numbers_and_groups_are_found() {
        assert_eq!(ids(""), (0, 0, vec![0], "/root".to_owned()));
        assert_eq!(ids("www"), (1000, 1001, vec![1001, 50], "/var/www".to_owned()));
        assert_eq!(ids("1000"), (1000, 1001, vec![1001, 50], "/var/www".to_owned()));
        assert_eq!(ids("www:extra"), (1000, 60, vec![60], "/var/www".to_owned()));
        assert_eq!(ids("www:7"), (1000, 7, vec![7], "/var/www".to_owned()));
        assert_eq!(ids("4242"), (4242, 0, vec![0], "/".to_owned()));
        assert_eq!(ids("4242:"), (4242, 0, vec![0], "/".to_owned()));
        assert_eq!(ids("4242:7"), (4242, 7, vec![7], "/".to_owned()));
        assert_eq!(ids("4242:extra"), (4242, 60, vec![60], "/".to_owned()));
        assert_eq!(user("www").unwrap().shell.as_deref(), Some("/bin/sh"));
        assert_eq!(user("4242").unwrap().shell, None);
    }

    #[test]
    fn what_is_unknown_is_an_error_and_root_needs_no_files() {
        assert!(user("nobody").is_err());
        assert!(user("www:nothing").is_err());
        assert!(user("broken").is_err());
        assert_eq!(resolve_in("root", None, None).unwrap().uid, 0);
        assert_eq!(resolve_in("5", None, None).unwrap().uid, 5);
        assert!(resolve_in("www", None, None).is_err());
    }

    #[test]
    fn what_no_process_can_be_is_told_as_that() {
        for (text, told) in [
            ("4294967295", "user 4294967295 is not possible: numbers go from 0 to 4294967294"),
            ("-1", "user -1 is not possible"),
            ("99999999999999999999", "user 99999999999999999999 is not possible"),
            ("www:4294967296", "group 4294967296 is not possible"),
            ("far", "user far has no usable id in /etc/passwd"),
            ("www:far", "group far is not in the image's /etc/group"),
        ] {
            let far = "far:x:4294967296:0::/:\nwww:x:1:1::/:\n";
            let error = resolve_in(text, Some(far), Some("far:x:-1:\n")).unwrap_err();
            assert!(error.starts_with(told), "{text}: {error}");
        }
    }

    #[test]
    fn a_damaged_line_hurts_no_other() {
        let passwd = String::from_utf8_lossy(
            b"b\xe4d:x:7:7::/:\n\xff\xfe\n::::\n  www:x:1000: 1001:\xc3:/var/www:\r\n\0\n",
        );
        let group = String::from_utf8_lossy(b"\xff:x:9:www\nstaff:x:50: other, www\n:::www\n");
        let user = resolve_in("www", Some(&passwd), Some(&group)).unwrap();
        assert_eq!(
            (user.uid, user.gid, user.groups, &*user.home),
            (1000, 1001, vec![1001, 9, 50], "/var/www")
        );
        assert_eq!(resolve_in("7", Some(&passwd), None).unwrap().uid, 7);
    }

    proptest::proptest! {
        #[test]
        fn any_files_and_names_give_a_user_or_an_error(
            text in ".{0,40}",
            passwd in "[a-z0-9:,\\-\n]{0,200}",
            group in ".{0,200}",
        ) {
            if let Ok(user) = resolve_in(&text, Some(&passwd), Some(&group)) {
                proptest::prop_assert!(user.uid <= LARGEST_ID && user.groups.contains(&user.gid));
            }
        }
    }
}
