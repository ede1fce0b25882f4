-- A database of schema 0001 with data, as `sqlite3 .dump` writes it. Never edited: real ones can't be either.
BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE audit (
	id INTEGER NOT NULL, 
	actor VARCHAR NOT NULL, 
	action VARCHAR NOT NULL, 
	job_id VARCHAR, 
	"before" JSON, 
	"after" JSON, 
	reason TEXT NOT NULL, 
	at_s DOUBLE NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "audit" VALUES(1,'olga','override','01JC0000000000000000000001',NULL,'{"value":0.5}','too steep',1700000011.0);
CREATE TABLE commands (
	id INTEGER NOT NULL, 
	job_id VARCHAR NOT NULL, 
	body JSON NOT NULL, 
	override_id VARCHAR, 
	folded_round INTEGER, 
	at_s DOUBLE NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
INSERT INTO "commands" VALUES(1,'01JC0000000000000000000001','{"kind":"Override"}','01JC0000000000000000000009',2,1700000011.0);
CREATE TABLE controller (
	id INTEGER NOT NULL, 
	epoch INTEGER NOT NULL, 
	pid INTEGER NOT NULL, 
	started_s DOUBLE NOT NULL, 
	is_draining BOOLEAN NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "controller" VALUES(1,7,4321,1700000000.0,0);
CREATE TABLE events (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	job_id VARCHAR NOT NULL, 
	type VARCHAR NOT NULL, 
	data JSON NOT NULL, 
	at_s DOUBLE NOT NULL, 
	FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
INSERT INTO "events" VALUES(1,'01JC0000000000000000000001','state','{}',1700000000.5);
CREATE TABLE idempotency (
	owner VARCHAR NOT NULL, 
	"key" VARCHAR NOT NULL, 
	body_digest VARCHAR NOT NULL, 
	job_id VARCHAR NOT NULL, 
	at_s DOUBLE NOT NULL, 
	PRIMARY KEY (owner, "key"), 
	FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
INSERT INTO "idempotency" VALUES('ann','key-1','cd','01JC0000000000000000000001',1700000000.5);
CREATE TABLE job_labels (
	job_id VARCHAR NOT NULL, 
	"key" VARCHAR NOT NULL, 
	value VARCHAR NOT NULL, 
	PRIMARY KEY (job_id, "key"), 
	FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
INSERT INTO "job_labels" VALUES('01JC0000000000000000000001','team','vision');
CREATE TABLE jobs (
	id VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	owner VARCHAR NOT NULL, 
	state VARCHAR NOT NULL, 
	reason VARCHAR NOT NULL, 
	message TEXT NOT NULL, 
	priority INTEGER NOT NULL, 
	created_s DOUBLE NOT NULL, 
	updated_s DOUBLE NOT NULL, 
	started_s DOUBLE, 
	finished_s DOUBLE, 
	version INTEGER NOT NULL, 
	submission INTEGER NOT NULL, 
	ray_submission_id VARCHAR, 
	failures INTEGER NOT NULL, 
	not_before_s DOUBLE, 
	wanted VARCHAR, 
	resume_round INTEGER, 
	attempt INTEGER NOT NULL, 
	round INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	total_steps INTEGER, 
	steps_per_s DOUBLE, 
	replicas_present INTEGER NOT NULL, 
	plan_digest VARCHAR, 
	revision INTEGER NOT NULL, 
	last_report_s DOUBLE, 
	last_checkpoint_s DOUBLE, 
	storage_path VARCHAR, 
	spec JSON NOT NULL, 
	schedule JSON, 
	schedule_before JSON, 
	"plan" JSON, 
	PRIMARY KEY (id)
);
INSERT INTO "jobs" VALUES('01JC0000000000000000000001','digits','ann','RUNNING','Running','',5,1700000000.5,1700000001.5,1700000001.0,NULL,3,1,'hdet-01JC0000000000000000000001-1',0,NULL,NULL,NULL,1,4,80,900,NULL,2,'abababababababababababababababab',2,NULL,NULL,NULL,'{"name": "digits", "entrypoint": "digits", "ttl_after_finished_s": 3600}','{"version": 1, "state": {"config": {"controller": {"kind": "auto", "alpha": 0.0, "sync_every": null, "scout_steps": 20, "pair_steps": 40, "scout_samples": 256, "pair_samples": 1024, "scout_spacing": 1.5, "pair_spacing": 1.0, "max_scouts": 5, "max_pairs": 3, "max_search_ratio": 0.25}, "total_steps": 900, "max_lr": [0.001], "floor_lr": [4e-09], "cycle": {"total_steps": 900, "max_lr": [0.001], "pct_start": 0.3, "anneal_strategy": "cos", "cycle_momentum": true, "base_momentum": [0.85], "max_momentum": [0.95], "div_factor": 25.0, "final_div_factor": 10000.0, "three_phase": false}, "bounds": {}, "explored": [], "has_probe": true, "probe_samples": 64, "max_rollbacks": 3, "thresholds": {"own_noise_z": 10.0, "peer_z": 6.0, "explosion_z": 30.0}, "seed": 0}, "round": 0, "step": 0, "calls": 0, "log_scale": 0.0, "ratios": [1.0], "search": {"stage": "scout", "scout_steps": 20, "pair_steps": 40, "low": -9.210340371976182, "high": 9.210340371976184, "centre": 0.0, "is_recentred": false, "scouts": 0, "pairs": 0, "is_confirmed": false, "is_suspect": false, "start": null, "pair": [], "untrained_loss": null, "pair_untrained_loss": null, "points": [], "result": null}, "search_steps": 0, "rates": null, "warm_rates": null, "explored": {}, "velocity": {}, "delta": {}, "bounds": {"lr": {"0": [1.0000000000000001e-07, 10.0]}}, "frozen": [], "overrides": [], "rollbacks": 0, "evidence": [], "notes": [], "failure": null}}',NULL,'{"round": 4, "phase": "scout", "step": 80, "num_steps": 20, "total_steps": 900, "search_steps": 80, "shape": "trial", "teams": [0, 1], "base": {"lr": {"0": 0.00669517897439589}}, "peak": {"lr": {"0": 0.02008553692318767}}, "scale": {"lr": {"0": 20.085536923187668}}, "values": {"lr": {"0": [0.4723665527410147, 2.117000016612675]}}, "end": "put_back", "probe": {"first": 0, "count": 4}, "untrained_probe": null, "cycle": {"total_steps": 900, "max_lr": [0.001], "pct_start": 0.3, "anneal_strategy": "cos", "cycle_momentum": true, "base_momentum": [0.85], "max_momentum": [0.95], "div_factor": 25.0, "final_div_factor": 10000.0, "three_phase": false}, "overrides": [], "notes": [], "failure": null}');
INSERT INTO "jobs" VALUES('01JC0000000000000000000002','letters','bob','SUCCEEDED','Completed','',5,1700000000.5,1700000001.5,1700000001.0,1700000900.0,3,1,'hdet-01JC0000000000000000000002-1',0,NULL,NULL,NULL,1,4,80,900,NULL,2,'abababababababababababababababab',2,NULL,NULL,NULL,'{"name": "letters", "entrypoint": "digits", "ttl_after_finished_s": 3600}','{"version": 1, "state": {"config": {"controller": {"kind": "auto", "alpha": 0.0, "sync_every": null, "scout_steps": 20, "pair_steps": 40, "scout_samples": 256, "pair_samples": 1024, "scout_spacing": 1.5, "pair_spacing": 1.0, "max_scouts": 5, "max_pairs": 3, "max_search_ratio": 0.25}, "total_steps": 900, "max_lr": [0.001], "floor_lr": [4e-09], "cycle": {"total_steps": 900, "max_lr": [0.001], "pct_start": 0.3, "anneal_strategy": "cos", "cycle_momentum": true, "base_momentum": [0.85], "max_momentum": [0.95], "div_factor": 25.0, "final_div_factor": 10000.0, "three_phase": false}, "bounds": {}, "explored": [], "has_probe": true, "probe_samples": 64, "max_rollbacks": 3, "thresholds": {"own_noise_z": 10.0, "peer_z": 6.0, "explosion_z": 30.0}, "seed": 0}, "round": 0, "step": 0, "calls": 0, "log_scale": 0.0, "ratios": [1.0], "search": {"stage": "scout", "scout_steps": 20, "pair_steps": 40, "low": -9.210340371976182, "high": 9.210340371976184, "centre": 0.0, "is_recentred": false, "scouts": 0, "pairs": 0, "is_confirmed": false, "is_suspect": false, "start": null, "pair": [], "untrained_loss": null, "pair_untrained_loss": null, "points": [], "result": null}, "search_steps": 0, "rates": null, "warm_rates": null, "explored": {}, "velocity": {}, "delta": {}, "bounds": {"lr": {"0": [1.0000000000000001e-07, 10.0]}}, "frozen": [], "overrides": [], "rollbacks": 0, "evidence": [], "notes": [], "failure": null}}',NULL,'{"round": 4, "phase": "scout", "step": 80, "num_steps": 20, "total_steps": 900, "search_steps": 80, "shape": "trial", "teams": [0, 1], "base": {"lr": {"0": 0.00669517897439589}}, "peak": {"lr": {"0": 0.02008553692318767}}, "scale": {"lr": {"0": 20.085536923187668}}, "values": {"lr": {"0": [0.4723665527410147, 2.117000016612675]}}, "end": "put_back", "probe": {"first": 0, "count": 4}, "untrained_probe": null, "cycle": {"total_steps": 900, "max_lr": [0.001], "pct_start": 0.3, "anneal_strategy": "cos", "cycle_momentum": true, "base_momentum": [0.85], "max_momentum": [0.95], "div_factor": 25.0, "final_div_factor": 10000.0, "three_phase": false}, "overrides": [], "notes": [], "failure": null}');
CREATE TABLE ledger_starts (
	job_id VARCHAR NOT NULL, 
	round INTEGER NOT NULL, 
	header JSON NOT NULL, 
	PRIMARY KEY (job_id), 
	FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
INSERT INTO "ledger_starts" VALUES('01JC0000000000000000000001',0,'{"version": 1, "state": {"config": {"controller": {"kind": "auto", "alpha": 0.0, "sync_every": null, "scout_steps": 20, "pair_steps": 40, "scout_samples": 256, "pair_samples": 1024, "scout_spacing": 1.5, "pair_spacing": 1.0, "max_scouts": 5, "max_pairs": 3, "max_search_ratio": 0.25}, "total_steps": 900, "max_lr": [0.001], "floor_lr": [4e-09], "cycle": {"total_steps": 900, "max_lr": [0.001], "pct_start": 0.3, "anneal_strategy": "cos", "cycle_momentum": true, "base_momentum": [0.85], "max_momentum": [0.95], "div_factor": 25.0, "final_div_factor": 10000.0, "three_phase": false}, "bounds": {}, "explored": [], "has_probe": true, "probe_samples": 64, "max_rollbacks": 3, "thresholds": {"own_noise_z": 10.0, "peer_z": 6.0, "explosion_z": 30.0}, "seed": 0}, "round": 0, "step": 0, "calls": 0, "log_scale": 0.0, "ratios": [1.0], "search": {"stage": "scout", "scout_steps": 20, "pair_steps": 40, "low": -9.210340371976182, "high": 9.210340371976184, "centre": 0.0, "is_recentred": false, "scouts": 0, "pairs": 0, "is_confirmed": false, "is_suspect": false, "start": null, "pair": [], "untrained_loss": null, "pair_untrained_loss": null, "points": [], "result": null}, "search_steps": 0, "rates": null, "warm_rates": null, "explored": {}, "velocity": {}, "delta": {}, "bounds": {"lr": {"0": [1.0000000000000001e-07, 10.0]}}, "frozen": [], "overrides": [], "rollbacks": 0, "evidence": [], "notes": [], "failure": null}}');
CREATE TABLE overrides (
	id VARCHAR NOT NULL, 
	job_id VARCHAR NOT NULL, 
	body JSON NOT NULL, 
	state VARCHAR NOT NULL, 
	applied_round INTEGER, 
	refusal TEXT NOT NULL, 
	created_by VARCHAR NOT NULL, 
	created_s DOUBLE NOT NULL, 
	updated_s DOUBLE NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
INSERT INTO "overrides" VALUES('01JC0000000000000000000009','01JC0000000000000000000001','{"hparam":"lr","op":"scale","value":0.5}','applied',3,'','olga',1700000011.0,1700000012.0);
CREATE TABLE packages (
	sha256 VARCHAR NOT NULL, 
	size_bytes INTEGER NOT NULL, 
	created_by VARCHAR NOT NULL, 
	created_s DOUBLE NOT NULL, 
	used_s DOUBLE NOT NULL, 
	PRIMARY KEY (sha256)
);
INSERT INTO "packages" VALUES('1212121212121212121212121212121212121212121212121212121212121212',1234,'ann',1700000000.0,1700000000.5);
CREATE TABLE rounds (
	job_id VARCHAR NOT NULL, 
	attempt INTEGER NOT NULL, 
	round INTEGER NOT NULL, 
	item TEXT NOT NULL, 
	at_s DOUBLE NOT NULL, 
	is_abandoned BOOLEAN NOT NULL, 
	PRIMARY KEY (job_id, attempt, round), 
	FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
INSERT INTO "rounds" VALUES('01JC0000000000000000000001',1,0,'{"attempt": 1, "round": 0, "report": {"round": 0, "calls": 20, "steps": 20, "plan_digest": "ae7e29b262867c1cbeaba9bc7658db18", "replicas": [{"loss": 4.281386851693576, "tail_loss": 4.281386851693576, "start_loss": 4.281386851693576, "last_loss": 4.281386851693576, "noise": 0.05, "is_finite": true, "has_loss": true, "brought_nonfinite": false, "probe_loss": 4.203135389553156}, {"loss": 3.854112321337595, "tail_loss": 3.854112321337595, "start_loss": 3.854112321337595, "last_loss": 3.854112321337595, "noise": 0.05, "is_finite": true, "has_loss": true, "brought_nonfinite": false, "probe_loss": 3.8460096644786295}], "untrained_loss": 5.55, "external_rates": {}, "commands": [], "next_num_replicas": null, "facts": {"wall_s": 0.2}}, "plan": {"round": 1, "phase": "scout", "step": 20, "num_steps": 20, "total_steps": 900, "search_steps": 20, "shape": "trial", "teams": [0, 1], "base": {"lr": {"0": 0.0007056666722042249}}, "peak": {"lr": {"0": 0.0021170000166126747}}, "scale": {"lr": {"0": 2.117000016612675}}, "values": {"lr": {"0": [0.4723665527410147, 2.117000016612675]}}, "end": "put_back", "probe": {"first": 0, "count": 4}, "untrained_probe": null, "cycle": {"total_steps": 900, "max_lr": [0.001], "pct_start": 0.3, "anneal_strategy": "cos", "cycle_momentum": true, "base_momentum": [0.85], "max_momentum": [0.95], "div_factor": 25.0, "final_div_factor": 10000.0, "three_phase": false}, "overrides": [], "notes": [], "failure": null}, "report_digest": "6097bb9dddd774c8b471bc38ffc5cfb1"}',1700000010.0,0);
INSERT INTO "rounds" VALUES('01JC0000000000000000000001',1,1,'{"attempt": 1, "round": 1, "report": {"round": 1, "calls": 20, "steps": 20, "plan_digest": "4ca4ed5a70bf72dd4d8589898fc9b259", "replicas": [{"loss": 4.03449359357354, "tail_loss": 4.03449359357354, "start_loss": 4.03449359357354, "last_loss": 4.03449359357354, "noise": 0.05, "is_finite": true, "has_loss": true, "brought_nonfinite": false, "probe_loss": 4.004885027015892}, {"loss": 3.787624408965186, "tail_loss": 3.787624408965186, "start_loss": 3.787624408965186, "last_loss": 3.787624408965186, "noise": 0.05, "is_finite": true, "has_loss": true, "brought_nonfinite": false, "probe_loss": 3.726509301941366}], "untrained_loss": null, "external_rates": {}, "commands": [], "next_num_replicas": null, "facts": {"wall_s": 0.2}}, "plan": {"round": 2, "phase": "scout", "step": 40, "num_steps": 20, "total_steps": 900, "search_steps": 40, "shape": "trial", "teams": [0, 1], "base": {"lr": {"0": 0.001493896356779355}}, "peak": {"lr": {"0": 0.004481689070338065}}, "scale": {"lr": {"0": 4.4816890703380645}}, "values": {"lr": {"0": [0.4723665527410147, 2.117000016612675]}}, "end": "put_back", "probe": {"first": 0, "count": 4}, "untrained_probe": null, "cycle": {"total_steps": 900, "max_lr": [0.001], "pct_start": 0.3, "anneal_strategy": "cos", "cycle_momentum": true, "base_momentum": [0.85], "max_momentum": [0.95], "div_factor": 25.0, "final_div_factor": 10000.0, "three_phase": false}, "overrides": [], "notes": [], "failure": null}, "report_digest": "ae4bd503b3ec9d1396cbd3d66fe96af4"}',1700000011.0,0);
INSERT INTO "rounds" VALUES('01JC0000000000000000000001',1,2,'{"attempt": 1, "round": 2, "report": {"round": 2, "calls": 20, "steps": 20, "plan_digest": "d973a22aecb63863c0bb8a97f90170b4", "replicas": [{"loss": 3.8655191976529872, "tail_loss": 3.8655191976529872, "start_loss": 3.8655191976529872, "last_loss": 3.8655191976529872, "noise": 0.05, "is_finite": true, "has_loss": true, "brought_nonfinite": false, "probe_loss": 3.8460096644786295}, {"loss": 3.694220338720551, "tail_loss": 3.694220338720551, "start_loss": 3.694220338720551, "last_loss": 3.694220338720551, "noise": 0.05, "is_finite": true, "has_loss": true, "brought_nonfinite": false, "probe_loss": 3.646383939404103}], "untrained_loss": null, "external_rates": {}, "commands": [], "next_num_replicas": null, "facts": {"wall_s": 0.2}}, "plan": {"round": 3, "phase": "scout", "step": 60, "num_steps": 20, "total_steps": 900, "search_steps": 60, "shape": "trial", "teams": [0, 1], "base": {"lr": {"0": 0.003162578612119509}}, "peak": {"lr": {"0": 0.009487735836358526}}, "scale": {"lr": {"0": 9.487735836358526}}, "values": {"lr": {"0": [0.4723665527410147, 2.117000016612675]}}, "end": "put_back", "probe": {"first": 0, "count": 4}, "untrained_probe": null, "cycle": {"total_steps": 900, "max_lr": [0.001], "pct_start": 0.3, "anneal_strategy": "cos", "cycle_momentum": true, "base_momentum": [0.85], "max_momentum": [0.95], "div_factor": 25.0, "final_div_factor": 10000.0, "three_phase": false}, "overrides": [], "notes": [], "failure": null}, "report_digest": "d590c9a0351cece8adeec3823857f998"}',1700000012.0,0);
INSERT INTO "rounds" VALUES('01JC0000000000000000000001',1,3,'{"attempt": 1, "round": 3, "report": {"round": 3, "calls": 20, "steps": 20, "plan_digest": "72fba365794b3746bb06b0ea9a6d999c", "replicas": [{"loss": 3.781885196559612, "tail_loss": 3.781885196559612, "start_loss": 3.781885196559612, "last_loss": 3.781885196559612, "noise": 0.05, "is_finite": true, "has_loss": true, "brought_nonfinite": false, "probe_loss": 3.726509301941366}, {"loss": 3.6307006004087103, "tail_loss": 3.6307006004087103, "start_loss": 3.6307006004087103, "last_loss": 3.6307006004087103, "noise": 0.05, "is_finite": true, "has_loss": true, "brought_nonfinite": false, "probe_loss": 3.60563357686684}], "untrained_loss": null, "external_rates": {}, "commands": [], "next_num_replicas": null, "facts": {"wall_s": 0.2}}, "plan": {"round": 4, "phase": "scout", "step": 80, "num_steps": 20, "total_steps": 900, "search_steps": 80, "shape": "trial", "teams": [0, 1], "base": {"lr": {"0": 0.00669517897439589}}, "peak": {"lr": {"0": 0.02008553692318767}}, "scale": {"lr": {"0": 20.085536923187668}}, "values": {"lr": {"0": [0.4723665527410147, 2.117000016612675]}}, "end": "put_back", "probe": {"first": 0, "count": 4}, "untrained_probe": null, "cycle": {"total_steps": 900, "max_lr": [0.001], "pct_start": 0.3, "anneal_strategy": "cos", "cycle_momentum": true, "base_momentum": [0.85], "max_momentum": [0.95], "div_factor": 25.0, "final_div_factor": 10000.0, "three_phase": false}, "overrides": [], "notes": [], "failure": null}, "report_digest": "39cb11726eedd757c5cb61d21f9e3c20"}',1700000013.0,0);
INSERT INTO "rounds" VALUES('01JC0000000000000000000001',0,9,'{}',1700000009.0,1);
CREATE TABLE tokens (
	name VARCHAR NOT NULL, 
	role VARCHAR NOT NULL, 
	digest VARCHAR NOT NULL, 
	created_s DOUBLE NOT NULL, 
	revoked_s DOUBLE, 
	PRIMARY KEY (name), 
	UNIQUE (digest)
);
INSERT INTO "tokens" VALUES('olga','operator','efefefefefefefefefefefefefefefefefefefefefefefefefefefefefefefef',1700000000.0,NULL);
CREATE TABLE transitions (
	id INTEGER NOT NULL, 
	job_id VARCHAR NOT NULL, 
	state VARCHAR NOT NULL, 
	reason VARCHAR NOT NULL, 
	message TEXT NOT NULL, 
	at_s DOUBLE NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
INSERT INTO "transitions" VALUES(1,'01JC0000000000000000000001','QUEUED','Submitted','',1700000000.5);
INSERT INTO "transitions" VALUES(2,'01JC0000000000000000000001','STARTING','Starting','',1700000001.5);
INSERT INTO "transitions" VALUES(3,'01JC0000000000000000000001','RUNNING','Running','',1700000002.5);
CREATE INDEX jobs_by_state ON jobs (state, id);
CREATE INDEX jobs_by_name ON jobs (name);
CREATE INDEX ix_jobs_owner ON jobs (owner);
CREATE INDEX ix_jobs_finished_s ON jobs (finished_s);
CREATE INDEX labels_by_value ON job_labels ("key", value);
CREATE INDEX transitions_by_job ON transitions (job_id, id);
CREATE INDEX rounds_of_chain ON rounds (job_id, is_abandoned, round);
CREATE INDEX commands_by_job ON commands (job_id, id);
CREATE INDEX overrides_by_job ON overrides (job_id, id);
CREATE INDEX events_by_job ON events (job_id, id);
CREATE INDEX ix_audit_job_id ON audit (job_id);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('events',2);
COMMIT;
