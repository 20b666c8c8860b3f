//! What: the judgement of Pacemaker's picture, on what a real crm_mon printed and on what it never should.
//! Owns: nothing.
//! Invariants: none.
//! Does not: run Pacemaker; the tests of real peers do.
//! Called by: cargo test.

use super::*;

/// Printed by crm_mon 2.1.5 on a node `alpha` of one node with one resource, cut to what is read and a few words beside it.
fn document(dc: &str, node: &str, resource: &str) -> String {
    format!(
        r#"<pacemaker-result api-version="2.25" request="crm_mon --output-as=xml -1">
  <pacemakerd sys_from="pacemakerd" state="running" last_updated="2026-11-22 23:16:58Z"/>
  <summary>
    <stack type="corosync"/>
    <current_dc {dc}/>
    <resources_configured number="1" disabled="0" blocked="0"/>
    <cluster_options stonith-enabled="false" symmetric-cluster="true" no-quorum-policy="stop" maintenance-mode="false"/>
  </summary>
  <nodes>
    <node name="beta" id="2" online="false" standby="false" maintenance="false" pending="false" unclean="true" shutdown="false" resources_running="0" type="member"/>
    <node name="alpha" id="1" {node} standby="false" health="green" expected_up="true" is_dc="true" resources_running="1" type="member"/>
  </nodes>
  <resources>
    <group id="g" managed="true"><resource id="slow" resource_agent="ocf:pacemaker:Dummy" {resource} failed="false" nodes_running_on="1">
      <node name="alpha" id="1" cached="true"/>
    </resource></group>
  </resources>
  <status code="0" message="OK"/>
</pacemaker-result>"#
    )
}

const DC: &str = r#"present="true" version="2.1.5-a3f44794f94" name="alpha" id="1" with_quorum="true""#;
const NO_QUORUM: &str = r#"present="true" version="2.1.5-a3f44794f94" name="alpha" id="1" with_quorum="false""#;
const NO_DC: &str = r#"present="false""#;
const ONLINE: &str = r#"online="true" maintenance="false" pending="false" unclean="false" shutdown="false""#;
const MANAGED: &str = r#"role="Started" active="true" managed="true""#;
const DISKLESS: Before = Before { has_devices: false, had_quorum: true };
const WITH_DEVICES: Before = Before { has_devices: true, had_quorum: true };

fn read(text: &str) -> Picture {
    Picture::read(text, "alpha").unwrap()
}

#[test]
fn judgement_table() {
    let first = Before { had_quorum: false, ..DISKLESS };
    let offline = ONLINE.replace("online=\"true\"", "online=\"false\"");
    let unclean = ONLINE.replace("unclean=\"false\"", "unclean=\"true\"");
    let pending = ONLINE.replace("pending=\"false\"", "pending=\"true\"");
    let table = [
        (DC, ONLINE, DISKLESS, Opinion::Healthy),
        (DC, ONLINE, WITH_DEVICES, Opinion::Healthy),
        (NO_DC, ONLINE, WITH_DEVICES, Opinion::Unsure),
        (NO_DC, &offline, WITH_DEVICES, Opinion::Unsure),
        (DC, &offline, WITH_DEVICES, Opinion::Unhealthy),
        (DC, &unclean, WITH_DEVICES, Opinion::Unhealthy),
        (DC, &pending, WITH_DEVICES, Opinion::Unsure),
        (NO_QUORUM, ONLINE, WITH_DEVICES, Opinion::Unhealthy),
        (NO_QUORUM, ONLINE, Before { had_quorum: false, ..WITH_DEVICES }, Opinion::Unhealthy),
        (NO_QUORUM, ONLINE, DISKLESS, Opinion::Unsure),
        (NO_QUORUM, ONLINE, first, Opinion::Healthy),
        (NO_QUORUM, &unclean, first, Opinion::Unhealthy),
    ];
    for (dc, node, before, expected) in table {
        let picture = read(&document(dc, node, MANAGED));
        assert_eq!(picture.judge(before).0, expected, "{dc} {node} {before:?}: {:?}", picture.judge(before));
    }
}

#[test]
fn without_quorum_the_policy_decides_where_there_is_no_disk() {
    for (policy, expected) in [
        ("stop", Opinion::Unsure),
        ("freeze", Opinion::Unsure),
        ("ignore", Opinion::Unsure),
        ("demote", Opinion::Unsure),
        ("suicide", Opinion::Unhealthy),
        ("fence", Opinion::Unhealthy),
        ("", Opinion::Unhealthy),
    ] {
        let text = document(NO_QUORUM, ONLINE, MANAGED).replace("policy=\"stop\"", &format!("policy=\"{policy}\""));
        assert_eq!(read(&text).judge(DISKLESS).0, expected, "{policy}");
    }
}

#[test]
fn names_are_compared_without_case_and_must_be_there() {
    let text = document(DC, ONLINE, MANAGED);
    assert_eq!(Picture::read(&text, "ALPHA").unwrap().judge(WITH_DEVICES).0, Opinion::Healthy);
    assert_eq!(Picture::read(&text, "alph").unwrap().judge(WITH_DEVICES).0, Opinion::Unhealthy);
    assert_eq!(Picture::read(&text, "slow").unwrap().judge(WITH_DEVICES).0, Opinion::Unhealthy);
}

#[test]
fn a_node_has_stopped_when_nothing_managed_is_left() {
    let stopping = ONLINE.replace("shutdown=\"false\"", "shutdown=\"true\"");
    let in_maintenance = stopping.replace("maintenance=\"false\"", "maintenance=\"true\"");
    let unmanaged = r#"role="Started" active="true" managed="false""#;
    // As crm_mon 2.1.5 prints a resource whose stop has begun and is not done: it names no node, here `other`.
    let pending = r#"role="Stopping" active="false" managed="true""#;
    let stopped = r#"role="Stopped" active="false" managed="true""#;
    let table = [
        (ONLINE, MANAGED, "alpha", false),
        (&stopping, MANAGED, "alpha", false),
        (&stopping, unmanaged, "alpha", true),
        (&stopping, MANAGED, "beta", true), // it runs elsewhere
        (&stopping, pending, "other", false),
        (&stopping, stopped, "other", true),
        (&stopping, &pending.replace("\"true\"", "\"false\""), "other", true),
        (&in_maintenance, MANAGED, "alpha", true),
    ];
    for (node, resource, at, expected) in table {
        let text =
            document(DC, node, resource).replace("<node name=\"alpha\" id=\"1\" cached", &format!("<node name=\"{at}\" id=\"1\" cached"));
        assert_eq!(read(&text).is_stopped_cleanly(), expected, "{node} {resource} {at}");
    }
}

#[test]
fn what_is_no_picture_is_refused() {
    let good = document(DC, ONLINE, MANAGED);
    for end in 0..good.len() - 1 {
        assert!(Picture::read(&good[..end], "alpha").is_err(), "cut at {end}");
    }
    let deep = format!("{}{}", "<a>".repeat(100), "</a>".repeat(100));
    let cases = [
        good.replace("with_quorum=\"true\"", ""),
        good.replace("with_quorum=\"true\"", "with_quorum=\"1\""),
        good.replace("online=\"true\"", "online=\"maybe\""),
        good.replace("shutdown=\"false\"", ""),
        good.replace("</nodes>", "</node>"),
        "Could not connect to the CIB".into(),
        deep,
    ];
    for text in cases {
        assert!(Picture::read(&text, "alpha").is_err(), "{text}");
    }
    // What crm_mon prints, with code 102, when nobody is there: well-formed, and says nothing of any node.
    let nobody = r#"<pacemaker-result api-version="2.25" request="crm_mon -1">
  <status code="102" message="Not connected"><errors><error>crm_mon: Connection to cluster failed: Connection refused</error></errors></status>
</pacemaker-result>"#;
    assert_eq!(read(nobody).judge(WITH_DEVICES).0, Opinion::Unsure);
}

#[test]
fn pacemakerd_says_how_it_is_itself() {
    let picture = read(&document(DC, ONLINE, MANAGED));
    assert_eq!(picture.launcher, Some(("running".into(), "2026-11-22 23:16:58Z".into())));
    let older = document(DC, ONLINE, MANAGED).replace("<pacemakerd", "<other");
    assert_eq!(read(&older).launcher, None);
}
