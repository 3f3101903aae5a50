//! Users and groups by the files of the image. No name service: a static program has none.

use std::path::Path;

use crate::image_files;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

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
    let (name, group_name) = text.split_once(':').map_or((text, None), |(name, group)| (name, Some(group)));
    let name = if name.is_empty() { "root" } else { name };
    let entries = || passwd.unwrap_or_default().lines().map(|line| line.split(':').collect::<Vec<_>>());
    let number = name.parse::<u32>().ok();
    let by_name = entries().find(|fields| fields.first() == Some(&name));
    let by_number =
        || entries().find(|fields| number.is_some() && fields.get(2).and_then(|id| id.parse().ok()) == number);
    let entry = by_name.or_else(by_number);
    let id = |fields: &Vec<&str>, at: usize| fields.get(at).and_then(|id| id.parse::<u32>().ok());
    let (account, uid, gid, home) = match (&entry, number) {
        (Some(fields), _) => {
            let uid = id(fields, 2).ok_or_else(|| format!("user {name} has no id in /etc/passwd"))?;
            let home = fields.get(5).filter(|home| !home.is_empty()).unwrap_or(&"/");
            (fields[0], uid, id(fields, 3).unwrap_or(0), (*home).to_owned())
        }
        (None, Some(number)) => ("", number, number, "/".to_owned()),
        (None, None) if name == "root" => ("root", 0, 0, "/root".to_owned()),
        (None, None) if passwd.is_none() => {
            return Err(format!("user {name} is unknown: the image has no /etc/passwd"));
        }
        (None, None) => return Err(format!("user {name} is not in the image's /etc/passwd")),
    };
    let groups = || group.unwrap_or_default().lines().map(|line| line.split(':').collect::<Vec<_>>());
    let gid = match group_name.filter(|name| !name.is_empty()) {
        None => gid,
        Some(wanted) => groups()
            .find(|fields| fields.first() == Some(&wanted))
            .and_then(|fields| id(&fields, 2))
            .or_else(|| wanted.parse().ok())
            .ok_or_else(|| format!("group {wanted} is not in the image's /etc/group"))?,
    };
    let mut all = vec![gid];
    // As docker has it: a group that is named stands alone.
    if group_name.is_none() && !account.is_empty() {
        let member =
            |fields: &Vec<&str>| fields.get(3).is_some_and(|users| users.split(',').any(|user| user == account));
        all.extend(groups().filter(member).filter_map(|fields| id(&fields, 2)).filter(|id| *id != gid));
    }
    let shell = entry.as_ref().and_then(|fields| fields.get(6)).filter(|shell| !shell.is_empty());
    Ok(User { uid, gid, groups: all, home, shell: shell.map(|shell| (*shell).to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nwww:x:1000:1001::/var/www:/bin/sh\nbroken\n";
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
        assert_eq!(ids("4242"), (4242, 4242, vec![4242], "/".to_owned()));
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
}
