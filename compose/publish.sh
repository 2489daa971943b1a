#!/bin/sh
# Once: a join token for each node, and the first policy, signed by two of the three development approvers.
set -eu
umask 077
export EGM_MESH=/vol/operator
for node in ${NODES:-a b c}; do
  [ -s "/vol/$node/join-token" ] && continue
  token=$(egm node token "$node" --workload "$node")
  echo "$token" > "/vol/$node/join-token"
done
published=$(egm policy status --json | python -c 'import json, sys; print(any(p["state"] == "PUBLISHED" for p in json.load(sys.stdin)["proposals"]))')
if [ "$published" = True ]; then
  echo "publish: a policy is in force already"
  exit 0
fi
# Who vouches for whom is part of the signed policy: every node for every other, by the key that each already has.
cp -r /opt/compose/policy /tmp/policy
printf 'attestation:\n  witnesses:\n' >> /tmp/policy/bundle.yaml
for node in ${NODES:-a b c}; do
  key=$(EGM_SIDECAR_DATA_DIR="/vol/$node/state" egm sidecar witness-key -c "/vol/$node/sidecar.yaml")
  printf '    %s: {key: "%s", address: "%s:7444"}\n' "$node" "$key" "$node" >> /tmp/policy/bundle.yaml
done
proposal=$(egm policy propose /tmp/policy --title "The first policy" --json | python -c 'import json, sys; print(json.load(sys.stdin)["id"])')
for approver in approver-1 approver-2; do
  egm policy sign "$proposal" --key "/vol/domain/trust/keys/$approver.pem"
done
egm policy publish "$proposal"
