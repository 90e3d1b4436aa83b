#!/bin/sh
# Runs inside the machine, as a service of it. Says what it sees, one word and its value a line; the test outside
# compares. Reads no credential itself: it would be a holder of it.

say() { echo "SAY $*"; }
wait_for() {
    n=0
    until eval "$1"; do
        n=$((n + 1))
        if [ $n -gt 300 ]; then say "never" "$1"; return 1; fi
        sleep 0.2
    done
}
life() { systemctl show -p InvocationID --value orders.service; }
data() { readlink /run/eso-vm-server/sets/orders-db/..data; }

dpkg -i /root/eso.deb || exit 1
say installed "$(systemctl is-enabled eso-vm-applier eso-vm-server | tr '\n' ' ')" "$(systemctl is-active eso-vm-applier eso-vm-server | tr '\n' ' ')"

mkdir -p /etc/orders /etc/eso-vm-server/conf.d
cp /root/config.toml /etc/eso-vm-server/config.toml
cat >/etc/eso-vm-server/conf.d/orders.toml <<'POLICY'
[set.orders-db]
places = [{ path = "/etc/orders/password", file = "password" }]
[[set.orders-db.consumers]]
unit = "orders.service"
adopt = "restart"
settle_ms = 1_000
POLICY
cat >/etc/systemd/system/orders.service <<'UNIT'
[Unit]
After=eso-vm-applier.service
[Service]
ExecStart=/bin/sh -c 'read -r P </etc/orders/password; exec sleep 100000'
UNIT
systemctl daemon-reload
eso-vm-applier enroll --bundle /root/bundle.json || exit 1
systemctl restart eso-vm-applier eso-vm-server
wait_for '[ "$(data)" = v1.1 ]'
say first "$(data)"
say mounted "$(grep -c ' /run/eso-vm-server/sets/orders-db .*- tmpfs ' /proc/1/mountinfo)"
systemctl start orders.service
before=$(life)

systemctl restart eso-vm-applier
say restarted "$([ "$before" = "$(life)" ] && echo same)" "$(systemctl show -p NFileDescriptorStore --value eso-vm-applier)"
touch /root/rotate
wait_for '[ "$(data)" = v1.2 ]'
wait_for '[ "$before" != "$(life)" ]'
wait_for '[ ! -e /run/eso-vm-server/sets/orders-db/v1.1 ]'
say rotated "$(data)" "$([ -e /run/eso-vm-server/sets/orders-db/v1.1 ] || echo gone)"

before=$(life)
dpkg -i /root/eso.deb || exit 1
say upgraded "$([ "$before" = "$(life)" ] && echo same)" "$(systemctl is-active eso-vm-applier eso-vm-server | tr '\n' ' ')" "$(systemctl show -p NFileDescriptorStore --value eso-vm-applier)"

dpkg -r eso-vm-server || exit 1
say removed "$(systemctl is-active eso-vm-applier eso-vm-server orders | tr '\n' ' ')" "$(data)"
journalctl -u eso-vm-applier -u eso-vm-server --no-pager -o cat | uniq | tail -100
