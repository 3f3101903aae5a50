-- A catalog as the release with schema 2 made it: dumped by the sqlite3 shell, rows in every table.
PRAGMA application_id=1128350787;
PRAGMA user_version=2;
PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE organizations (
        number INTEGER PRIMARY KEY AUTOINCREMENT, slug TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
        created_ms INTEGER NOT NULL) STRICT;
INSERT INTO organizations VALUES(1,'personal','Personal',1795936006818);
CREATE TABLE networks (
        number INTEGER PRIMARY KEY AUTOINCREMENT, organization INTEGER NOT NULL REFERENCES organizations(number),
        name TEXT NOT NULL, prefix TEXT NOT NULL UNIQUE, created_ms INTEGER NOT NULL, UNIQUE (organization, name)) STRICT;
INSERT INTO networks VALUES(1,1,'default','fdaa:edc1:ecd1::/48',1795936006824);
INSERT INTO networks VALUES(2,1,'own','fdaa:262a:9c23::/48',1795936006824);
CREATE TABLE apps (
        number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
        organization INTEGER NOT NULL REFERENCES organizations(number),
        network INTEGER NOT NULL REFERENCES networks(number), created_ms INTEGER NOT NULL,
        deleting_ms INTEGER, deleted_ms INTEGER) STRICT;
INSERT INTO apps VALUES(1,'s88pm5ein3dyvcch','web',1,1,1795936006824,NULL,NULL);
INSERT INTO apps VALUES(2,'83nf9mhsdlv3rbfu','isolated',1,2,1795936006825,NULL,NULL);
INSERT INTO apps VALUES(3,'d72kcsyq4alp2bu1','going',1,1,1795936006825,1795936006831,NULL);
INSERT INTO apps VALUES(4,'i7l4tadbpkd892ls','gone',1,1,1795936006825,1795936006832,1795936006832);
INSERT INTO apps VALUES(5,'dhhq7a0g1y0fp9ec','nameless-fire-4735',1,1,1795936006826,NULL,NULL);
CREATE TABLE app_keys (
        organization INTEGER NOT NULL REFERENCES organizations(number), key TEXT NOT NULL, wanted_name TEXT,
        app INTEGER NOT NULL REFERENCES apps(number), PRIMARY KEY (organization, key)) STRICT;
INSERT INTO app_keys VALUES(1,'web-key','web',1);
INSERT INTO app_keys VALUES(1,'made-up-key',NULL,5);
CREATE TABLE placements (
        machine TEXT PRIMARY KEY, name TEXT NOT NULL, app INTEGER NOT NULL REFERENCES apps(number),
        worker TEXT NOT NULL, region TEXT NOT NULL, epoch INTEGER NOT NULL, ipv6 TEXT NOT NULL UNIQUE,
        created_ms INTEGER NOT NULL, released_ms INTEGER) STRICT, WITHOUT ROWID;
INSERT INTO placements VALUES('86fa89438f98d3','old',1,'01JWORKER0000000000000000A','local',1,'fdaa:edc1:ecd1:a96d:6122:5664:b9f8:2',1795936006830,1795936006830);
INSERT INTO placements VALUES('914771eab0322c','one',2,'01JWORKER0000000000000000A','local',1,'fdaa:262a:9c23:d699:cf2:4fcf:f1b0:2',1795936006831,NULL);
INSERT INTO placements VALUES('b6f1416a539540','two',1,'01JWORKER0000000000000000A','local',1,'fdaa:edc1:ecd1:871b:ac3:fab6:5350:2',1795936006828,NULL);
INSERT INTO placements VALUES('b8aab3ce7a2c6e','one',1,'01JWORKER0000000000000000A','local',1,'fdaa:edc1:ecd1:1afd:885b:8766:30cc:2',1795936006827,NULL);
INSERT INTO placements VALUES('ff755df4941281','last',3,'01JWORKER0000000000000000A','local',1,'fdaa:edc1:ecd1:8a99:6a2:5358:a684:2',1795936006831,NULL);
CREATE TABLE tokens (
        number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, hash BLOB NOT NULL UNIQUE,
        organization INTEGER NOT NULL REFERENCES organizations(number), created_ms INTEGER NOT NULL) STRICT;
INSERT INTO tokens VALUES(1,'root',X'2995e058421a115e0774c7404b650f0078bb6c1c408a2fe9efb4a68d967c8c36',1,1795936006823);
CREATE TABLE health (only INTEGER PRIMARY KEY CHECK (only = 0), checked_ms INTEGER NOT NULL) STRICT;
INSERT INTO health VALUES(0,1795936006833);
CREATE TABLE requests (
        caller TEXT NOT NULL, key TEXT NOT NULL, id TEXT NOT NULL UNIQUE, fingerprint BLOB NOT NULL,
        created_ms INTEGER NOT NULL, machine TEXT, status INTEGER, content_type TEXT, body BLOB,
        PRIMARY KEY (caller, key)) STRICT;
INSERT INTO requests VALUES('root','answered','01REQUESTANSWERED',X'0707070707070707070707070707070707070707070707070707070707070707',1795936006827,'b8aab3ce7a2c6e',200,'application/json',X'7b226964223a226d227d');
INSERT INTO requests VALUES('root','cut-short','01REQUESTCUTSHORT',X'0707070707070707070707070707070707070707070707070707070707070707',1795936006828,'b6f1416a539540',NULL,NULL,NULL);
INSERT INTO requests VALUES('root','too-long','01REQUESTTOOLONG',X'0707070707070707070707070707070707070707070707070707070707070707',1795936006829,NULL,200,NULL,NULL);
DELETE FROM sqlite_sequence;
INSERT INTO sqlite_sequence VALUES('organizations',1);
INSERT INTO sqlite_sequence VALUES('tokens',1);
INSERT INTO sqlite_sequence VALUES('networks',2);
INSERT INTO sqlite_sequence VALUES('apps',5);
CREATE UNIQUE INDEX apps_by_name ON apps (name) WHERE deleted_ms IS NULL;
CREATE UNIQUE INDEX placements_by_name ON placements (app, name) WHERE released_ms IS NULL;
CREATE INDEX placements_by_worker ON placements (worker) WHERE released_ms IS NULL;
CREATE INDEX requests_by_time ON requests (created_ms);
COMMIT;
