"""The procedures of libvirt's remote protocol, one row each.

    number  right  name  arguments -> results

Right: o before or at the opening, r also on a read-only connection, w not on one, e an event that
we send.  Types as in `xdr`.  Numbers, names, order and widths are facts of the protocol,
written down in our own notation; a test compares every row with the client library itself.
What has a row and no handler is answered "not supported", and so are numbers without a row.
"""

from typing import Final

ROWS: Final = """\
# Connect and session
 66 o auth_list -> types:*i
 70 o auth_polkit -> complete:i
 60 o connect_supports_feature feature:i -> supported:i
  1 o connect_open name:?s flags:u ->
  2 o connect_close ->
360 r connect_register_close_callback ->
361 r connect_unregister_close_callback ->
362 e connect_event_connection_closed reason:i
419 w connect_set_identity params:*typed_param flags:u ->
  3 r connect_get_type -> type:s
  4 r connect_get_version -> hv_ver:H
157 r connect_get_lib_version -> lib_ver:H
110 r connect_get_uri -> uri:s
 59 r connect_get_hostname -> hostname:s
  7 r connect_get_capabilities -> capabilities:s
342 r connect_get_domain_capabilities emulatorbin:?s arch:?s machine:?s virttype:?s flags:u ->
      capabilities:s
  5 r connect_get_max_vcpus type:?s -> max_vcpus:i
149 r connect_is_secure -> secure:i
203 r connect_get_sysinfo flags:u -> sysinfo:s
158 r connect_compare_cpu xml:s flags:u -> result:i
162 r connect_baseline_cpu xmlCPUs:*s flags:u -> cpu:s
393 r connect_compare_hypervisor_cpu emulator:?s arch:?s machine:?s virttype:?s xmlCPU:s flags:u
      -> result:i
394 r connect_baseline_hypervisor_cpu emulator:?s arch:?s machine:?s virttype:?s xmlCPUs:*s
      flags:u -> cpu:s
312 r connect_get_cpu_model_names arch:s need_results:i flags:u -> models:*s ret:i
135 r connect_domain_xml_from_native nativeFormat:s nativeConfig:s flags:u -> domainXml:s
136 r connect_domain_xml_to_native nativeFormat:s domainXml:s flags:u -> nativeConfig:s
# Node
  6 r node_get_info -> model:c[32] memory:H cpus:i mhz:i nodes:i sockets:i cores:i threads:i
102 r node_get_free_memory -> freeMem:H
101 r node_get_cells_free_memory startCell:i maxcells:i -> cells:*H
293 r node_get_cpu_map need_map:i need_online:i flags:u -> cpumap:y online:u ret:i
227 r node_get_cpu_stats cpuNum:i nparams:i flags:u -> params:*node_stat nparams:i
228 r node_get_memory_stats nparams:i cellNum:i flags:u -> params:*node_stat nparams:i
122 r node_get_security_model -> model:*c doi:*c
340 r node_get_free_pages pages:*u startCell:i cellCount:u flags:u -> counts:*H
347 w node_alloc_pages pageSizes:*u pageCounts:*H startCell:i cellCount:u flags:u -> ret:i
289 r node_get_memory_parameters nparams:i flags:u -> params:*typed_param nparams:i
288 w node_set_memory_parameters params:*typed_param flags:u ->
395 r node_get_sev_info nparams:i flags:u -> params:*typed_param nparams:i
250 w node_suspend_for_duration target:u duration:H flags:u ->
# Domain list and lookup
273 r connect_list_all_domains need_results:i flags:u -> domains:*domain ret:u
 51 r connect_num_of_domains -> num:i
 37 r connect_list_domains maxids:i -> ids:*i
 25 r connect_num_of_defined_domains -> num:i
 21 r connect_list_defined_domains maxnames:i -> names:*s
 22 r domain_lookup_by_id id:i -> dom:domain
 23 r domain_lookup_by_name name:s -> dom:domain
 24 r domain_lookup_by_uuid uuid:uuid -> dom:domain
# Domain state and description
212 r domain_get_state dom:domain flags:u -> state:i reason:i
 16 r domain_get_info dom:domain -> state:c maxMem:H memory:H nrVirtCpu:w cpuTime:H
 14 r domain_get_xml_desc dom:domain flags:u -> xml:s
 19 r domain_get_os_type dom:domain -> type:s
150 r domain_is_active dom:domain -> active:i
151 r domain_is_persistent dom:domain -> persistent:i
202 r domain_is_updated dom:domain -> updated:i
183 r domain_has_managed_save_image dom:domain flags:u -> result:i
229 r domain_get_control_info dom:domain flags:u -> state:u details:u stateTime:H
277 r domain_get_hostname dom:domain flags:u -> hostname:s
 15 r domain_get_autostart dom:domain -> autostart:i
 17 r domain_get_max_memory dom:domain -> memory:H
 18 r domain_get_max_vcpus dom:domain -> num:i
200 r domain_get_vcpus_flags dom:domain flags:u -> num:i
 20 r domain_get_vcpus dom:domain maxinfo:i maplen:i -> info:*vcpu_info cpumaps:y
230 r domain_get_vcpu_pin_info dom:domain ncpumaps:i maplen:i flags:u -> cpumaps:y num:i
163 r domain_get_job_info dom:domain -> type:i timeElapsed:H timeRemaining:H dataTotal:H
      dataProcessed:H dataRemaining:H memTotal:H memProcessed:H memRemaining:H fileTotal:H
      fileProcessed:H fileRemaining:H
298 r domain_get_job_stats dom:domain flags:u -> type:i params:*typed_param
426 r domain_get_messages dom:domain flags:u -> msgs:*s
449 r domain_get_autostart_once dom:domain -> autostart:i
# Domain lifecycle
  9 w domain_create dom:domain ->
196 w domain_create_with_flags dom:domain flags:u -> dom:domain
 10 w domain_create_xml xml_desc:s flags:u -> dom:domain
 11 w domain_define_xml xml:s -> dom:domain
350 w domain_define_xml_flags xml:s flags:u -> dom:domain
 12 w domain_destroy dom:domain ->
234 w domain_destroy_flags dom:domain flags:u ->
 33 w domain_shutdown dom:domain ->
258 w domain_shutdown_flags dom:domain flags:u ->
 27 w domain_reboot dom:domain flags:u ->
245 w domain_reset dom:domain flags:u ->
 34 w domain_suspend dom:domain ->
 28 w domain_resume dom:domain ->
 35 w domain_undefine dom:domain ->
231 w domain_undefine_flags dom:domain flags:u ->
 29 w domain_set_autostart dom:domain autostart:i ->
358 w domain_rename dom:domain new_name:?s flags:u -> retcode:i
182 w domain_managed_save dom:domain flags:u ->
184 w domain_managed_save_remove dom:domain flags:u ->
 55 w domain_save dom:domain to:s ->
232 w domain_save_flags dom:domain to:s dxml:?s flags:u ->
 54 w domain_restore from:s ->
233 w domain_restore_flags from:s dxml:?s flags:u ->
235 w domain_save_image_get_xml_desc file:s flags:u -> xml:s
236 w domain_save_image_define_xml file:s dxml:s flags:u ->
388 r domain_managed_save_get_xml_desc dom:domain flags:u -> xml:s
 53 w domain_core_dump dom:domain to:s flags:u ->
334 w domain_core_dump_with_format dom:domain to:s dumpformat:u flags:u ->
164 w domain_abort_job dom:domain ->
295 w domain_send_process_signal dom:domain pid_value:h signum:u flags:u ->
267 w domain_pm_wakeup dom:domain flags:u ->
261 w domain_pm_suspend_for_duration dom:domain target:u duration:H flags:u ->
226 w domain_send_key dom:domain codeset:u holdtime:u keycodes:*u flags:u ->
210 w domain_inject_nmi dom:domain flags:u ->
# Domain config and devices
  8 w domain_attach_device dom:domain xml:s ->
 13 w domain_detach_device dom:domain xml:s ->
160 w domain_attach_device_flags dom:domain xml:s flags:u ->
161 w domain_detach_device_flags dom:domain xml:s flags:u ->
174 w domain_update_device_flags dom:domain xml:s flags:u ->
392 w domain_detach_device_alias dom:domain alias:s flags:u ->
 31 w domain_set_memory dom:domain memory:H ->
204 w domain_set_memory_flags dom:domain memory:H flags:u ->
 30 w domain_set_max_memory dom:domain memory:H ->
 32 w domain_set_vcpus dom:domain nvcpus:u ->
199 w domain_set_vcpus_flags dom:domain nvcpus:u flags:u ->
264 w domain_set_metadata dom:domain type:i metadata:?s key:?s uri:?s flags:u ->
265 r domain_get_metadata dom:domain type:i uri:?s flags:u -> metadata:s
357 w domain_set_user_password dom:domain user:?s password:?s flags:u ->
251 w domain_block_resize dom:domain disk:s size:H flags:u ->
 58 w domain_set_scheduler_parameters dom:domain params:*typed_param ->
223 r domain_get_scheduler_parameters_flags dom:domain nparams:i flags:u -> params:*typed_param
 56 r domain_get_scheduler_type dom:domain -> type:s nparams:i
 57 r domain_get_scheduler_parameters dom:domain nparams:i -> params:*typed_param
219 w domain_set_scheduler_parameters_flags dom:domain params:*typed_param flags:u ->
198 r domain_get_memory_parameters dom:domain nparams:i flags:u -> params:*typed_param nparams:i
197 w domain_set_memory_parameters dom:domain params:*typed_param flags:u ->
206 r domain_get_blkio_parameters dom:domain nparams:i flags:u -> params:*typed_param nparams:i
205 w domain_set_blkio_parameters dom:domain params:*typed_param flags:u ->
253 r domain_get_block_io_tune dom:domain disk:?s nparams:i flags:u -> params:*typed_param nparams:i
252 w domain_set_block_io_tune dom:domain disk:s params:*typed_param flags:u ->
257 r domain_get_interface_parameters dom:domain device:s nparams:i flags:u -> params:*typed_param
      nparams:i
256 w domain_set_interface_parameters dom:domain device:s params:*typed_param flags:u ->
 26 w domain_pin_vcpu dom:domain vcpu:u cpumap:y ->
255 r domain_get_numa_parameters dom:domain nparams:i flags:u -> params:*typed_param nparams:i
254 w domain_set_numa_parameters dom:domain params:*typed_param flags:u ->
390 w domain_set_lifecycle_action dom:domain type:u action:u flags:u ->
279 w domain_pin_emulator dom:domain cpumap:y flags:u ->
384 w domain_set_vcpu dom:domain cpumap:s state:i flags:u ->
355 w domain_add_iothread dom:domain iothread_id:u flags:u ->
356 w domain_del_iothread dom:domain iothread_id:u flags:u ->
352 w domain_pin_iothread dom:domain iothreads_id:u cpumap:y flags:u ->
402 w domain_set_iothread_params dom:domain iothread_id:u params:*typed_param flags:u ->
308 w domain_set_memory_stats_period dom:domain period:i flags:u ->
386 w domain_set_block_threshold dom:domain dev:s threshold:H flags:u ->
439 w domain_set_launch_security_state dom:domain params:*typed_param flags:u ->
396 r domain_get_launch_security_info dom:domain flags:u -> params:*typed_param
225 w domain_pin_vcpu_flags dom:domain vcpu:u cpumap:y flags:u ->
# Domain statistics
344 r connect_get_all_domain_stats doms:*domain stats:u flags:u -> retStats:*domain_stats_record
 64 r domain_block_stats dom:domain path:s -> rd_req:h rd_bytes:h wr_req:h wr_bytes:h errs:h
243 r domain_block_stats_flags dom:domain path:s nparams:i flags:u -> params:*typed_param nparams:i
 65 r domain_interface_stats dom:domain path:s -> rx_bytes:h rx_packets:h rx_errs:h rx_drop:h
      tx_bytes:h tx_packets:h tx_errs:h tx_drop:h
159 r domain_memory_stats dom:domain maxStats:u flags:u -> stats:*domain_memory_stat
194 r domain_get_block_info dom:domain path:s flags:u -> allocation:H capacity:H physical:H
262 r domain_get_cpu_stats dom:domain nparams:u start_cpu:i ncpus:u flags:u -> params:*typed_param
      nparams:i
237 w domain_block_job_abort dom:domain path:s flags:u ->
239 w domain_block_job_set_speed dom:domain path:s bandwidth:H flags:u ->
240 w domain_block_pull dom:domain path:s bandwidth:H flags:u ->
266 w domain_block_rebase dom:domain path:s base:?s bandwidth:H flags:u ->
290 w domain_block_commit dom:domain disk:s base:?s top:?s bandwidth:H flags:u ->
345 w domain_block_copy dom:domain path:s destxml:s params:*typed_param flags:u ->
238 r domain_get_block_job_info dom:domain path:s flags:u -> found:i type:i bandwidth:H cur:H end:H
351 r domain_get_iothread_info dom:domain flags:u -> info:*iothread_info ret:u
280 r domain_get_emulator_pin_info dom:domain maplen:i flags:u -> cpumaps:y ret:i
263 r domain_get_disk_errors dom:domain maxerrors:u flags:u -> errors:*domain_disk_error nerrors:i
365 r domain_get_perf_events dom:domain flags:u -> params:*typed_param
366 w domain_set_perf_events dom:domain params:*typed_param flags:u ->
427 w domain_start_dirty_rate_calc dom:domain seconds:i flags:u ->
103 w domain_block_peek dom:domain path:s offset:H size:u flags:u -> buffer:y
104 w domain_memory_peek dom:domain offset:H size:u flags:u -> buffer:y
353 r domain_interface_addresses dom:domain source:u flags:u -> ifaces:*domain_interface
# The inside of a guest
349 w domain_get_fsinfo dom:domain flags:u -> info:*domain_fsinfo ret:u
418 w domain_get_guest_info dom:domain types:u flags:u -> params:*typed_param
337 w domain_get_time dom:domain flags:u -> seconds:h nseconds:u
338 w domain_set_time dom:domain seconds:h nseconds:u flags:u ->
294 w domain_fstrim dom:domain mountPoint:?s minimum:H flags:u ->
335 w domain_fsfreeze dom:domain mountpoints:*s flags:u -> filesystems:i
336 w domain_fsthaw dom:domain mountpoints:*s flags:u -> filesystems:i
420 w domain_agent_set_response_timeout dom:domain timeout:i flags:u -> result:i
424 w domain_authorized_ssh_keys_get dom:domain user:s flags:u -> keys:*s
425 w domain_authorized_ssh_keys_set dom:domain user:s keys:*s flags:u ->
371 w domain_get_guest_vcpus dom:domain flags:u -> params:*typed_param
372 w domain_set_guest_vcpus dom:domain cpumap:s state:i flags:u ->
# Domain events
316 r connect_domain_event_callback_register_any eventID:i dom:?domain -> callbackID:i
317 r connect_domain_event_callback_deregister_any callbackID:i ->
318 e domain_event_callback_lifecycle callbackID:i msg:lifecycle_event
326 e domain_event_callback_block_job callbackID:i msg:block_job_event
319 e domain_event_callback_reboot callbackID:i msg:domain_event
331 e domain_event_callback_balloon_change callbackID:i msg:balloon_event
333 e domain_event_callback_device_removed callbackID:i msg:device_event
354 e domain_event_callback_device_added callbackID:i dom:domain devAlias:s
379 e domain_event_callback_metadata_change callbackID:i dom:domain type:i nsuri:?s
348 e domain_event_callback_agent_lifecycle callbackID:i dom:domain state:i reason:i
328 e domain_event_callback_tray_change callbackID:i msg:tray_event
346 e domain_event_callback_tunable callbackID:i dom:domain params:*typed_param
363 e domain_event_callback_job_completed callbackID:i dom:domain params:*typed_param
339 e domain_event_block_job_2 callbackID:i dom:domain dst:s type:i status:i
105 r connect_domain_event_register -> cb_registered:i
107 e domain_event_lifecycle dom:domain event:i detail:i
# Streams and consoles
201 w domain_open_console dom:domain dev_name:?s flags:u ->
296 w domain_open_channel dom:domain name:?s flags:u ->
211 w domain_screenshot dom:domain screen:u flags:u -> mime:?s
343 w domain_open_graphics_fd dom:domain idx:u flags:u ->
249 w domain_open_graphics dom:domain idx:u flags:u ->
310 w domain_create_with_files dom:domain flags:u -> dom:domain
309 w domain_create_xml_with_files xml_desc:s flags:u -> dom:domain
208 w storage_vol_upload vol:storage_vol offset:H length:H flags:u ->
209 w storage_vol_download vol:storage_vol offset:H length:H flags:u ->
# Snapshots
185 w domain_snapshot_create_xml dom:domain xml_desc:s flags:u -> snap:domain_snapshot
186 r domain_snapshot_get_xml_desc snap:domain_snapshot flags:u -> xml:s
189 r domain_snapshot_lookup_by_name dom:domain name:s flags:u -> snap:domain_snapshot
274 r domain_list_all_snapshots dom:domain need_results:i flags:u -> snapshots:*domain_snapshot
      ret:i
187 r domain_snapshot_num dom:domain flags:u -> num:i
188 r domain_snapshot_list_names dom:domain maxnames:i flags:u -> names:*s
190 r domain_has_current_snapshot dom:domain flags:u -> result:i
191 r domain_snapshot_current dom:domain flags:u -> snap:domain_snapshot
271 r domain_snapshot_is_current snap:domain_snapshot flags:u -> current:i
272 r domain_snapshot_has_metadata snap:domain_snapshot flags:u -> metadata:i
192 w domain_revert_to_snapshot snap:domain_snapshot flags:u ->
193 w domain_snapshot_delete snap:domain_snapshot flags:u ->
244 r domain_snapshot_get_parent snap:domain_snapshot flags:u -> snap:domain_snapshot
247 r domain_snapshot_list_children_names snap:domain_snapshot maxnames:i flags:u -> names:*s
246 r domain_snapshot_num_children snap:domain_snapshot flags:u -> num:i
275 r domain_snapshot_list_all_children snapshot:domain_snapshot need_results:i flags:u ->
      snapshots:*domain_snapshot ret:i
# Checkpoints and backups
411 w domain_checkpoint_create_xml dom:domain xml_desc:s flags:u -> checkpoint:domain_checkpoint
412 r domain_checkpoint_get_xml_desc checkpoint:domain_checkpoint flags:u -> xml:s
413 r domain_list_all_checkpoints dom:domain need_results:i flags:u ->
      checkpoints:*domain_checkpoint ret:i
414 r domain_checkpoint_list_all_children checkpoint:domain_checkpoint need_results:i flags:u ->
      checkpoints:*domain_checkpoint ret:i
415 r domain_checkpoint_lookup_by_name dom:domain name:s flags:u -> checkpoint:domain_checkpoint
416 r domain_checkpoint_get_parent checkpoint:domain_checkpoint flags:u -> parent:domain_checkpoint
417 w domain_checkpoint_delete checkpoint:domain_checkpoint flags:u ->
421 w domain_backup_begin dom:domain backup_xml:s checkpoint_xml:?s flags:u ->
422 r domain_backup_get_xml_desc dom:domain flags:u -> xml:s
# Migration
302 w domain_migrate_begin3_params dom:domain params:*typed_param flags:u -> cookie_out:y xml:s
303 w domain_migrate_prepare3_params params:*typed_param cookie_in:y flags:u -> cookie_out:y
      uri_out:?s
305 w domain_migrate_perform3_params dom:domain dconnuri:?s params:*typed_param cookie_in:y
      flags:u -> cookie_out:y
306 w domain_migrate_finish3_params params:*typed_param cookie_in:y flags:u cancelled:i ->
      dom:domain cookie_out:y
307 w domain_migrate_confirm3_params dom:domain params:*typed_param cookie_in:y flags:u
      cancelled:i ->
166 w domain_migrate_set_max_downtime dom:domain downtime:H flags:u ->
207 w domain_migrate_set_max_speed dom:domain bandwidth:H flags:u ->
242 r domain_migrate_get_max_speed dom:domain flags:u -> bandwidth:H
387 r domain_migrate_get_max_downtime dom:domain flags:u -> downtime:H
299 r domain_migrate_get_compression_cache dom:domain flags:u -> cacheSize:H
300 w domain_migrate_set_compression_cache dom:domain cacheSize:H flags:u ->
364 w domain_migrate_start_post_copy dom:domain flags:u ->
148 w domain_migrate_prepare_tunnel flags:H dname:?s resource:H dom_xml:s ->
# Networks
283 r connect_list_all_networks need_results:i flags:u -> nets:*network ret:u
 52 r connect_num_of_networks -> num:i
 38 r connect_list_networks maxnames:i -> names:*s
 50 r connect_num_of_defined_networks -> num:i
 36 r connect_list_defined_networks maxnames:i -> names:*s
 46 r network_lookup_by_name name:s -> net:network
 47 r network_lookup_by_uuid uuid:uuid -> net:network
 43 r network_get_xml_desc net:network flags:u -> xml:s
152 r network_is_active net:network -> active:i
153 r network_is_persistent net:network -> persistent:i
 44 r network_get_autostart net:network -> autostart:i
 45 r network_get_bridge_name net:network -> name:s
 48 w network_set_autostart net:network autostart:i ->
 41 w network_define_xml xml:s -> net:network
 40 w network_create_xml xml:s -> net:network
 39 w network_create net:network ->
 42 w network_destroy net:network ->
 49 w network_undefine net:network ->
291 w network_update net:network command:u section:u parentIndex:i xml:s flags:u ->
341 r network_get_dhcp_leases net:network mac:?s need_results:i flags:u ->
      leases:*network_dhcp_lease ret:u
313 r connect_network_event_register_any eventID:i net:?network -> callbackID:i
314 r connect_network_event_deregister_any callbackID:i ->
315 e network_event_lifecycle callbackID:i net:network event:i detail:i
405 r network_port_lookup_by_uuid network:network uuid:uuid -> port:network_port
406 w network_port_create_xml network:network xml:s flags:u -> port:network_port
404 r network_list_all_ports network:network need_results:i flags:u -> ports:*network_port ret:u
# Storage pools and volumes
281 r connect_list_all_storage_pools need_results:i flags:u -> pools:*storage_pool ret:u
 71 r connect_num_of_storage_pools -> num:i
 72 r connect_list_storage_pools maxnames:i -> names:*s
 73 r connect_num_of_defined_storage_pools -> num:i
 74 r connect_list_defined_storage_pools maxnames:i -> names:*s
 84 r storage_pool_lookup_by_name name:s -> pool:storage_pool
 85 r storage_pool_lookup_by_uuid uuid:uuid -> pool:storage_pool
 86 r storage_pool_lookup_by_volume vol:storage_vol -> pool:storage_pool
391 r storage_pool_lookup_by_target_path path:s -> pool:storage_pool
 88 r storage_pool_get_xml_desc pool:storage_pool flags:u -> xml:s
 87 r storage_pool_get_info pool:storage_pool -> state:c capacity:H allocation:H available:H
154 r storage_pool_is_active pool:storage_pool -> active:i
155 r storage_pool_is_persistent pool:storage_pool -> persistent:i
 89 r storage_pool_get_autostart pool:storage_pool -> autostart:i
 90 w storage_pool_set_autostart pool:storage_pool autostart:i ->
 77 w storage_pool_define_xml xml:s flags:u -> pool:storage_pool
 76 w storage_pool_create_xml xml:s flags:u -> pool:storage_pool
 78 w storage_pool_create pool:storage_pool flags:u ->
 79 w storage_pool_build pool:storage_pool flags:u ->
 80 w storage_pool_destroy pool:storage_pool ->
 81 w storage_pool_delete pool:storage_pool flags:u ->
 82 w storage_pool_undefine pool:storage_pool ->
 83 w storage_pool_refresh pool:storage_pool flags:u ->
282 r storage_pool_list_all_volumes pool:storage_pool need_results:i flags:u -> vols:*storage_vol
      ret:u
 91 r storage_pool_num_of_volumes pool:storage_pool -> num:i
 92 r storage_pool_list_volumes pool:storage_pool maxnames:i -> names:*s
 95 r storage_vol_lookup_by_name pool:storage_pool name:s -> vol:storage_vol
 96 r storage_vol_lookup_by_key key:s -> vol:storage_vol
 97 r storage_vol_lookup_by_path path:s -> vol:storage_vol
 99 r storage_vol_get_xml_desc vol:storage_vol flags:u -> xml:s
 98 r storage_vol_get_info vol:storage_vol -> type:c capacity:H allocation:H
100 r storage_vol_get_path vol:storage_vol -> name:s
 93 w storage_vol_create_xml pool:storage_pool xml:s flags:u -> vol:storage_vol
125 w storage_vol_create_xml_from pool:storage_pool xml:s clonevol:storage_vol flags:u ->
      vol:storage_vol
 94 w storage_vol_delete vol:storage_vol flags:u ->
260 w storage_vol_resize vol:storage_vol capacity:H flags:u ->
165 w storage_vol_wipe vol:storage_vol flags:u ->
259 w storage_vol_wipe_pattern vol:storage_vol algorithm:u flags:u ->
378 r storage_vol_get_info_flags vol:storage_vol flags:u -> type:c capacity:H allocation:H
368 r connect_storage_pool_event_register_any eventID:i pool:?storage_pool -> callbackID:i
369 r connect_storage_pool_event_deregister_any callbackID:i ->
370 e storage_pool_event_lifecycle callbackID:i pool:storage_pool event:i detail:i
373 e storage_pool_event_refresh callbackID:i pool:storage_pool
 75 w connect_find_storage_pool_sources type:s srcSpec:?s flags:u -> xml:s
403 r connect_get_storage_pool_capabilities flags:u -> capabilities:s
# Host interfaces
284 r connect_list_all_interfaces need_results:i flags:u -> ifaces:*interface ret:u
126 r connect_num_of_interfaces -> num:i
127 r connect_list_interfaces maxnames:i -> names:*s
137 r connect_num_of_defined_interfaces -> num:i
138 r connect_list_defined_interfaces maxnames:i -> names:*s
128 r interface_lookup_by_name name:s -> iface:interface
129 r interface_lookup_by_mac_string mac:s -> iface:interface
156 r interface_is_active iface:interface -> active:i
220 w interface_change_begin flags:u ->
221 w interface_change_commit flags:u ->
222 w interface_change_rollback flags:u ->
131 w interface_define_xml xml:s flags:u -> iface:interface
132 w interface_undefine iface:interface ->
133 w interface_create iface:interface flags:u ->
134 w interface_destroy iface:interface flags:u ->
130 r interface_get_xml_desc iface:interface flags:u -> xml:s
# Node devices
111 r node_num_of_devices cap:?s flags:u -> num:i
285 r connect_list_all_node_devices need_results:i flags:u -> devices:*node_device ret:u
113 r node_device_lookup_by_name name:s -> dev:node_device
114 r node_device_get_xml_desc name:s flags:u -> xml:s
115 r node_device_get_parent name:s -> parent:?s
116 r node_device_num_of_caps name:s -> num:i
117 r node_device_list_caps name:s maxnames:i -> names:*s
436 r node_device_is_active name:s -> active:i
435 r node_device_is_persistent name:s -> persistent:i
433 r node_device_get_autostart name:s -> autostart:i
434 w node_device_set_autostart name:s autostart:i ->
118 w node_device_dettach name:s ->
301 w node_device_detach_flags name:s driverName:?s flags:u ->
119 w node_device_re_attach name:s ->
120 w node_device_reset name:s ->
123 w node_device_create_xml xml_desc:s flags:u -> dev:node_device
124 w node_device_destroy name:s ->
428 w node_device_define_xml xml_desc:s flags:u -> dev:node_device
429 w node_device_undefine name:s flags:u ->
430 w node_device_create name:s flags:u ->
112 r node_list_devices cap:?s maxnames:i flags:u -> names:*s
374 r connect_node_device_event_register_any eventID:i dev:?node_device -> callbackID:i
375 r connect_node_device_event_deregister_any callbackID:i ->
376 e node_device_event_lifecycle callbackID:i dev:node_device event:i detail:i
# Secrets and filters
287 r connect_list_all_secrets need_results:i flags:u -> secrets:*secret ret:u
139 r connect_num_of_secrets -> num:i
140 r connect_list_secrets maxuuids:i -> uuids:*s
141 r secret_lookup_by_uuid uuid:uuid -> secret:secret
147 r secret_lookup_by_usage usageType:i usageID:s -> secret:secret
142 w secret_define_xml xml:s flags:u -> secret:secret
143 r secret_get_xml_desc secret:secret flags:u -> xml:s
145 w secret_get_value secret:secret flags:u -> value:y
146 w secret_undefine secret:secret ->
144 w secret_set_value secret:secret value:y flags:u ->
380 r connect_secret_event_register_any eventID:i secret:?secret -> callbackID:i
381 r connect_secret_event_deregister_any callbackID:i ->
286 r connect_list_all_nwfilters need_results:i flags:u -> filters:*nwfilter ret:u
178 r connect_num_of_nwfilters -> num:i
179 r connect_list_nwfilters maxnames:i -> names:*s
175 r nwfilter_lookup_by_name name:s -> nwfilter:nwfilter
176 r nwfilter_lookup_by_uuid uuid:uuid -> nwfilter:nwfilter
397 r nwfilter_binding_lookup_by_port_dev name:s -> nwfilter:nwfilter_binding
399 w nwfilter_binding_create_xml xml:s flags:u -> nwfilter:nwfilter_binding
180 w nwfilter_define_xml xml:s -> nwfilter:nwfilter
401 r connect_list_all_nwfilter_bindings need_results:i flags:u -> bindings:*nwfilter_binding ret:u
"""

# The same of another program, that of libvirt-qemu.
QEMU_ROWS: Final = """\
  1 w qemu_domain_monitor_command dom:domain cmd:s flags:u -> result:s
  2 w qemu_domain_attach pid_value:u flags:u -> dom:domain
  3 w qemu_domain_agent_command dom:domain cmd:s timeout:i flags:u -> result:?s
"""
