//! Merge patches (RFC 7396) and what kubectl sends as strategic merge patches.

use serde_json::Value;

/// How a patch treats lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lists {
    /// A merge patch replaces a list.
    Replaced,
    /// A strategic merge patch merges a list of objects that have a name, such as `containers`.
    MergedByName,
}

/// Applies `patch` to `target`.
///
/// # Errors
///
/// A sentence that names a directive of a strategic merge patch that is not supported.
pub(super) fn merge(target: &mut Value, patch: &Value, lists: Lists) -> Result<(), String> {
    let (Value::Object(_), Value::Object(patch)) = (&*target, patch) else {
        // RFC 7396: an object in the patch of a value that is none starts from an empty object.
        if let Value::Object(_) = patch {
            *target = Value::Object(serde_json::Map::new());
            return merge(target, patch, lists);
        }
        if let (Value::Array(old), Value::Array(new), Lists::MergedByName) =
            (&mut *target, patch, lists)
            && new.iter().all(|item| item["name"].is_string())
        {
            return merge_by_name(old, new);
        }
        *target = patch.clone();
        return Ok(());
    };
    for (key, value) in patch {
        if lists == Lists::MergedByName && key.starts_with('$') {
            // These say only in which order the elements of a list come, and which keys of a union stay.
            if key.starts_with("$setElementOrder/") || key == "$retainKeys" {
                continue;
            }
            return Err(format!("the stand-in does not support {key} in a patch"));
        }
        if value.is_null() {
            if let Value::Object(target) = target {
                target.remove(key);
            }
        } else {
            merge(&mut target[key.as_str()], value, lists)?;
        }
    }
    Ok(())
}

fn merge_by_name(old: &mut Vec<Value>, new: &[Value]) -> Result<(), String> {
    for item in new {
        if let Some(directive) = item.get("$patch") {
            if directive != "delete" {
                return Err(format!("the stand-in does not support $patch: {directive}"));
            }
            old.retain(|before| before["name"] != item["name"]);
            continue;
        }
        match old.iter_mut().find(|before| before["name"] == item["name"]) {
            Some(before) => merge(before, item, Lists::MergedByName)?,
            None => old.push(item.clone()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merged(target: Value, patch: &Value, lists: Lists) -> Result<Value, String> {
        let mut target = target;
        merge(&mut target, patch, lists)?;
        Ok(target)
    }

    #[test]
    fn merge_patch_sets_removes_and_replaces_lists() {
        let before = json!({ "a": { "b": 1, "c": 2 }, "list": [{ "name": "x" }], "text": "t" });
        let patch = json!({ "a": { "b": null, "d": { "e": 3, "f": null } }, "list": [{ "name": "y" }], "text": { "g": 4 } });
        let after = json!({ "a": { "c": 2, "d": { "e": 3 } }, "list": [{ "name": "y" }], "text": { "g": 4 } });
        assert_eq!(merged(before, &patch, Lists::Replaced), Ok(after));
    }

    #[test]
    fn strategic_patch_merges_lists_by_name() {
        let before =
            json!({ "containers": [{ "name": "a", "image": "1", "tty": true }, { "name": "b" }] });
        let patch = json!({
            "$setElementOrder/containers": [{ "name": "a" }],
            "containers": [{ "name": "a", "image": "2" }, { "name": "b", "$patch": "delete" }, { "name": "c" }],
        });
        let after =
            json!({ "containers": [{ "name": "a", "image": "2", "tty": true }, { "name": "c" }] });
        assert_eq!(merged(before, &patch, Lists::MergedByName), Ok(after));
    }

    #[test]
    fn unsupported_directive_is_an_error_that_names_it() {
        let patch = json!({ "$deleteFromPrimitiveList/finalizers": ["x"] });
        let error = merged(json!({}), &patch, Lists::MergedByName).unwrap_err();
        assert!(
            error.contains("$deleteFromPrimitiveList/finalizers"),
            "{error}"
        );
    }
}
